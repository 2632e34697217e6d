from tests.servers.fixtures import rabbitmq, s3_server

__all__ = ["rabbitmq", "s3_server"]  # a fixture is used by its name
