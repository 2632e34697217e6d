"""Poems from an OpenAI-shaped API, as many as asked for, as fast as the account allows.

Whoever comes from the rate_limited package finds the same program: the import and the lines with the limits
are other ones, the rest stays. The address and the key are read from OPENAI_BASE_URL and OPENAI_API_KEY by
the SDK.
"""

import openai
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

from headgate import Runner
from headgate.providers.openai import limits

client = openai.OpenAI(max_retries=0)  # retries are the runner's, which asks the limits first
account = limits(rpm=3_500, tpm=90_000)  # from the account's page of limits
runner = Runner(client.chat.completions.create, account)

for animal in ("otters", "herons", "pikes"):
    messages: list[ChatCompletionMessageParam] = [
        {"role": "user", "content": f"A poem about {animal}, please."}
    ]
    runner.schedule(model="small", messages=messages, max_tokens=256, timeout=60)

results, exceptions = runner.run()

for result in results:
    print(result.choices[0].message.content if result else "no poem")
print(f"{sum(map(len, exceptions))} attempts failed")


def has_even_letters(poem: ChatCompletion) -> bool:
    """What a validator is: a callable that says whether a result will do."""
    text = poem.choices[0].message.content or ""
    return sum(map(str.isalpha, text)) % 2 == 0


strict = Runner(client.chat.completions.create, account, validation=has_even_letters)
strict.schedule(model="small", messages=[{"role": "user", "content": "A short poem."}], max_tokens=64)
results, exceptions = strict.run()
print(f"even after {len(exceptions[0]) + 1} attempts" if results[0] else "never even")
