"""Chat templates with every trick, and requests as people keep them in logs: bodies of `/v1/chat/completions`."""

OPEN = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
TEMPLATES = {
    "text": "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}" + OPEN,
    "parts": "{% for m in messages %}<|{{ m['role'] }}|>{% for part in m['content'] %}{% if part['type'] == 'text' %}"
    "[{{ part['text'] }}]{% endif %}{% endfor %}{% endfor %}" + OPEN,
    "either": "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}" + OPEN,
    "tools": "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}{% for m in messages %}"
    "<|{{ m.role }}|>{{ m.content }}{% if m.name %}({{ m.name }}){% endif %}{% for call in m.tool_calls or [] %}"
    "{{ call.function.name }}{% for key, value in call.function.arguments.items() %} {{ key }}={{ value }}{% endfor %}"
    "{% endfor %}{% if m.tool_call_id %}#{{ m.tool_call_id }}{% endif %}{% endfor %}" + OPEN,
    "developer": "{% for m in messages %}{% if m.role == 'developer' %}<|dev|>{% else %}<|{{ m.role }}|>{% endif %}"
    "{{ m.content }}{% endfor %}" + OPEN,
    "options": "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if reasoning_effort is defined %}"
    "effort {{ reasoning_effort }}{% endif %}" + OPEN + "{% if enable_thinking is defined and not enable_thinking %}"
    "<think></think>{% endif %}",
    "reasoning": "{% for m in messages %}<|{{ m.role }}|>{% if m.reasoning_content %}({{ m.reasoning_content }})"
    "{% endif %}{{ m.content }}{% endfor %}" + OPEN,
    "date": "{{ strftime_now('%Y') }}{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% endfor %}" + OPEN,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


def call(arguments):
    """An assistant's turn without text that calls a tool."""
    function = {"name": "weather", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }


def result(content):
    """A tool's answer to that call."""
    return {"role": "tool", "tool_call_id": "c1", "content": content}


USER = {"role": "user", "content": "Is it cold in Oslo?"}
YES = {"role": "assistant", "content": "Yes."}
PARTS = {"role": "user", "content": [{"type": "text", "text": "Read this."}, {"type": "text", "text": "Then sum up."}]}
REQUESTS = {
    "a text": {"messages": [USER]},
    "one part": {"messages": [{"role": "user", "content": PARTS["content"][:1]}]},
    "parts": {"messages": [{"role": "system", "content": PARTS["content"]}, PARTS]},
    "a tool's result": {"messages": [USER, call('{"city": "Oslo"}'), result("-3")], "tools": TOOLS},
    "tools in full": {
        "messages": [USER],
        "tools": [
            {
                "type": "function",
                "defer_loading": True,
                "function": {"name": "rain", "description": "Of a day.", "x": 1},
            },
            {"type": "function", "function": {"name": "snow", "strict": True, "parameters": {"type": "object"}}},
        ],
    },
    "a result in parts": {"messages": [USER, call("{}"), result(PARTS["content"])]},
    "no arguments": {"messages": [USER, call(""), result("-3"), USER]},
    "broken arguments": {"messages": [USER, call('{"city": '), result("-3"), USER]},
    "arguments that are a list": {"messages": [USER, call("[1]"), result("-3"), USER]},
    "no tool calls": {"messages": [USER, YES | {"tool_calls": []}, USER]},
    "a developer": {"messages": [{"role": "developer", "content": "Be brief."}, USER]},
    "a developer later": {
        "messages": [
            {"role": "system", "content": "Be kind."},
            USER,
            YES,
            {"role": "developer", "content": PARTS["content"]},
            USER,
        ]
    },
    "a name": {"messages": [USER | {"name": "Ada"}]},
    "a thought": {"messages": [USER, YES | {"reasoning": "North."}, USER]},
    "no thinking": {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}},
    "an effort": {"messages": [USER], "chat_template_kwargs": {"reasoning_effort": "low"}},
}
