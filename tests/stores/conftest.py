from tests.servers.fixtures import empty_redis, own_redis, redis_server

__all__ = ["empty_redis", "own_redis", "redis_server"]  # a fixture is used by its name
