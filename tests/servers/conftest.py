from tests.servers.fixtures import empty_redis, own_redis, rabbitmq, redis_server, s3_server

# A fixture is used by its name.
__all__ = ["empty_redis", "own_redis", "rabbitmq", "redis_server", "s3_server"]
