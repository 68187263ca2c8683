"""The endpoint annotator against a server on loopback that fails in every way a server can."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rllr.cli import UserError
from rllr.data.annotators import Ask
from rllr.data.annotators.endpoint import EndpointAnnotator, mentioned, problem
from rllr.data.spec import TaskSpec
from rllr.tasks import Task

TASK = Task("mood", "label", ("good", "bad"))
SPECS = {"mood": TaskSpec(TASK, "Good or bad?", {"good": "joy", "bad": "grief"}, {}, False)}
SECRET = "sk-not-to-be-seen"


class Server:
    """Answers request n with `answer(n, prompt)`: a text, or (kind, ...) for a fault."""

    def __init__(self, answer):
        self.answer, self.prompts, self.running, self.most = answer, [], 0, 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][-1]["content"]
                with server.lock:
                    server.prompts.append(prompt)
                    number = len(server.prompts)
                    server.running += 1
                    server.most = max(server.most, server.running)
                try:
                    server.reply(self, server.answer(number, prompt))
                finally:
                    with server.lock:
                        server.running -= 1

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def reply(self, handler, answer) -> None:
        status, finish, text = 200, "stop", answer
        match answer:
            case ("status", code):
                status, text = code, None
            case ("hang", seconds):
                time.sleep(seconds)
                text = "late"
            case ("cut", half):
                finish, text = "length", half
            case ("raw", body):
                return self.send(handler, 200, body)
            case ("half", body):
                handler.send_response(200)
                handler.send_header("Content-Type", "application/json")
                handler.send_header("Content-Length", str(len(body) * 2))
                handler.end_headers()
                handler.wfile.write(body)
                handler.close_connection = True
                return None
        message = {"role": "assistant", "content": text}
        return self.send(
            handler,
            status,
            json.dumps(
                {
                    "id": "x",
                    "object": "chat.completion",
                    "created": 0,
                    "model": "m",
                    "choices": [{"index": 0, "message": message, "finish_reason": finish}],
                    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
                }
            ).encode(),
        )

    def send(self, handler, status, body) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("Retry-After-Ms", "10")
        handler.end_headers()
        handler.wfile.write(body)


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """A function: (answer, settings) -> (annotator, server)."""
    monkeypatch.setenv("TEST_KEY", SECRET)
    servers = []

    def start(answer, **settings):
        server = Server(answer)
        servers.append(server)
        defaults = {
            "base_url": server.url,
            "model": "m",
            "prompt": "Why is {input} {label}, that is {claim}?",
            "judge_prompt": "{input} {label}: [{first}] [{second}]",
            "key_from": "TEST_KEY",
            "timeout": 0.5,
            "retries": 2,
            "cache": str(tmp_path / "cache.sqlite"),
        }
        return EndpointAnnotator(SPECS, defaults | settings), server

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def asks(n: int, label: str = "good") -> list[Ask]:
    return [Ask("mood", str(i), f"text {i}", "", label, -1) for i in range(n)]


def test_answers_in_order_and_never_twice(serve, tmp_path):
    def slowly(n, prompt):
        time.sleep(0.02)
        return f"Because  {prompt.split()[3]}\nshines."

    annotator, server = serve(slowly, concurrency=3)
    expected = [f"Because {i} shines." for i in range(20)]
    assert annotator.write(asks(20)) == expected
    assert server.prompts.count("Why is text 7 good, that is joy?") == 1
    assert 1 < server.most <= 3
    assert annotator.summary() == {"model": "m", "requests": 20, "prompt tokens": 200, "answer tokens": 100}
    again, idle = serve(lambda n, prompt: "new", base_url="http://127.0.0.1:9/v1")
    assert again.write(asks(20)) == expected
    assert again.counts["answers from the cache"] == 20 and not idle.prompts
    assert SECRET.encode() not in (tmp_path / "cache.sqlite").read_bytes()


FAULTS = {
    "429": ("status", 429),
    "500": ("status", 500),
    "503": ("status", 503),
    "hang": ("hang", 1.0),
    "half an answer": ("half", b'{"id": "x", "choices'),
    "broken json": ("raw", b'{"id": "x", '),
    "json of another kind": ("raw", b"[]"),
    "no choices": ("raw", b'{"id": "x", "choices": []}'),
    "no content": ("raw", b'{"id": "x", "choices": [{"message": {"content": null}}]}'),
    "empty": "",
    "cut off": ("cut", "Because the"),
    "another label": "This is clearly bad.",
    "an answer line": "Nice.\nLabel: good",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_asked_again(name, serve):
    annotator, server = serve(lambda n, prompt: FAULTS[name] if n == 1 else "It shines.")
    assert annotator.write(asks(1)) == ["It shines."]
    assert len(server.prompts) == 2


def test_answers_that_stay_unusable_are_dropped_and_counted(serve):
    annotator, server = serve(lambda n, prompt: "This is clearly bad.", attempts=3)
    assert annotator.write(asks(1)) == [None]
    assert len(server.prompts) == 3
    assert annotator.counts["answers refused: argues for another label"] == 3
    assert annotator.counts["rationales dropped"] == 1


@pytest.mark.parametrize("fault", [("status", 500), ("status", 401), ("hang", 1.0)])
def test_a_dead_endpoint_is_one_line_without_the_key(fault, serve):
    annotator, server = serve(lambda n, prompt: "Fine." if n == 1 else fault, retries=1, concurrency=1)
    assert annotator.write(asks(1)) == ["Fine."]
    with pytest.raises(UserError) as error:
        annotator.write(asks(5))
    message = str(error.value)
    assert server.url in message and "run again" in message
    assert SECRET not in message and "\n" not in message
    assert annotator.counts["answers from the cache"] == 1


def test_limits(serve):
    annotator, server = serve(lambda n, prompt: "Fine.", max_requests=4)
    with pytest.raises(UserError, match="max_requests 4"):
        annotator.write(asks(9))
    assert len(server.prompts) == 4
    annotator, server = serve(lambda n, prompt: "Fine.", max_total_tokens=30, concurrency=1)
    with pytest.raises(UserError, match="max_total_tokens 30"):
        annotator.write(asks(9))
    assert len(server.prompts) == 2  # 15 tokens each, and four answers were in the cache


def test_judge_asks_both_orders(serve):
    def prefers_long(n, prompt):
        if "tie" in prompt:
            return "1"
        first, second = prompt.split("[")[1:]
        return "The better one is 1." if len(first) > len(second) else "2"

    annotator, _ = serve(prefers_long)
    ask = asks(1)[0]
    cases = [(ask, "short", "very long"), (ask, "very long", "short"), (ask, "a tie", "b")]
    assert annotator.judge(cases) == [1, 0, None]


def test_prompt_with_an_unknown_field(serve):
    with pytest.raises(UserError, match=r"annotator\.endpoint\.prompt"):
        serve(lambda n, prompt: "", prompt="{text}")


def test_labels_in_a_text():
    task = Task("t", "label", ("equivalent", "not equivalent"))
    assert mentioned("They are not equivalent.", task) == {"not equivalent"}
    assert problem("They are not equivalent.", "equivalent", task) == "argues for another label"
    assert problem("They are not equivalent.", "not equivalent", task) is None
    assert problem("They mean one thing.", "equivalent", task) is None
