from tests.servers.fixtures import s3_server

__all__ = ["s3_server"]  # a fixture is used by its name
