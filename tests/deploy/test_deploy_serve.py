"""The MLflow model: loads as pyfunc, answers over HTTP, and outlives bad requests."""

import base64
import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from deploy_cases import CLASSES, write_weights

from fsd.data.scenes.compose import scene
from fsd.deploy import serve
from fsd.deploy.detector import EVALUATION, Settings, load, see
from fsd.deploy.images import Frame

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
pytest.importorskip("onnxruntime")
mlflow = pytest.importorskip("mlflow")
MlflowException = pytest.importorskip("mlflow.exceptions").MlflowException


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Weights and the model made of them."""
    folder = tmp_path_factory.mktemp("served")
    weights = write_weights(folder / "weights.pt")
    serve.export_model(weights, out=folder / "model")
    return weights, folder / "model"


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def encoded(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def huge_png() -> bytes:
    """A few hundred bytes that say they are 30000 x 30000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + rows + chunk(b"IEND", b"")


WHOLE = encoded(scene(0, 0, 96)[0])
BAD = {
    "not base64 text": "!!!!",
    "of the kind": text(b"plain text, no picture"),
    "cut off": text(WHOLE[: len(WHOLE) // 2]),
    "megapixels": text(huge_png()),
    "larger than": "A" * (serve.SERVED_BYTES * 4 // 3 + 8),
    "": "",
    "JPEG or PNG": text(encoded(scene(0, 0, 96)[0], ".webp")),
}


def test_the_model_gives_the_detectors_detections(made):
    weights, model = made
    images = [scene(0, 1, 120)[0], scene(0, 2, 96)[0][:60]]
    import pandas as pd

    table = pd.DataFrame({"image": [text(encoded(image)) for image in images]})
    answers = mlflow.pyfunc.load_model(str(model)).predict(table, params={"score": 0.2})
    settings = EVALUATION._replace(score=0.2)
    wanted = see(load(weights), [Frame(Path(), None, image) for image in images], settings)
    for answer, image, seen in zip(answers, images, wanted, strict=True):
        assert (answer["height"], answer["width"]) == image.shape[:2]
        assert len(answer["detections"]) == len(seen.found.scores) > 3
        scores = [d["score"] for d in answer["detections"]]
        np.testing.assert_allclose(scores, seen.found.scores, atol=1e-4)
        for d in answer["detections"]:
            own_class = seen.found.labels == CLASSES.index(d["class"])
            off = abs(seen.found.boxes - [d[k] for k in ("x1", "y1", "x2", "y2")]).max(1)
            assert (own_class & (off < 0.02)).any()


def test_signature_example_and_requirements(made):
    model = mlflow.pyfunc.load_model(str(made[1]))
    signature = model.metadata.signature
    assert signature.inputs.input_names() == ["image"]
    assert signature.params.params[0].default == Settings().score
    (answer,) = model.predict(model.input_example)
    assert answer.keys() == set(signature.outputs.input_names())
    required = (made[1] / "requirements.txt").read_text(encoding="utf-8")
    assert "onnxruntime" in required and "torch" not in required


def test_it_runs_without_torch_and_from_its_own_copy_of_the_code(made):
    code = f"""
import sys
for name in ("torch", "torchvision"):
    sys.modules[name] = None
sys.meta_path = [f for f in sys.meta_path if "editable" not in str(f).lower()]
import mlflow
model = mlflow.pyfunc.load_model({str(made[1])!r})
import fsd
assert fsd.__file__.startswith({str(made[1])!r}), fsd.__file__
assert model.predict(model.input_example, params={{"score": 0.1}})[0]["detections"]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("says", BAD)
def test_what_is_no_image_is_refused(made, says):
    from mlflow.exceptions import MlflowException

    served = serve.Served(made[1] / "data" / "model.onnx")
    with pytest.raises(MlflowException, match=f"row 1: .*{says}") as raised:
        served.predict({"image": [text(WHOLE), BAD[says]]})
    assert raised.value.get_http_status_code() == 400


@pytest.mark.parametrize("score", [float("nan"), 7, -1, float("inf")])
def test_a_score_that_is_no_share_is_refused(made, score):
    served = serve.Served(made[1] / "data" / "model.onnx")
    rows = pd.DataFrame({"image": [encoded_photo()]})
    with pytest.raises(MlflowException, match="send a number from 0 to 1"):
        served.predict(rows, {"score": score})


def test_a_request_has_a_limit_of_images_and_of_their_pixels(made, monkeypatch):
    served = serve.Served(made[1] / "data" / "model.onnx")
    text = encoded_photo()
    with pytest.raises(MlflowException, match="65 images in one request: send 64 at most"):
        served.predict(pd.DataFrame({"image": [text] * 65}))
    monkeypatch.setattr(serve, "SERVED_PIXELS", 100)
    with pytest.raises(MlflowException, match="row 1: the images of one request"):
        served.predict(pd.DataFrame({"image": [text] * 2}))


def encoded_photo() -> str:
    _, data = cv2.imencode(".png", np.zeros((9, 11, 3), np.uint8))
    return base64.b64encode(data.tobytes()).decode()


def test_out_that_holds_something_else(made, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").touch()
    (tmp_path / "file").touch()
    for name in ("own", "file"):
        with pytest.raises(ValueError, match="no MLflow model: choose another --out"):
            serve.export_model(made[0], out=tmp_path / name)
    assert (tmp_path / "own" / "thesis.txt").exists()


def test_without_mlflow(made, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mlflow.pyfunc", None)
    with pytest.raises(ValueError, match=r"pip install 'fsd\[tracking\]'"):
        serve.export_model(made[0], out=tmp_path / "model")


@pytest.fixture(scope="module")
def address(made, tmp_path_factory):
    """`mlflow models serve` on a free port of this machine; stopped at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [Path(sys.executable).with_name("mlflow"), "models", "serve", "--model-uri", made[1]]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    log = (tmp_path_factory.mktemp("log") / "server.log").open("w+")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    server = subprocess.Popen(
        list(map(str, command)), stdout=log, stderr=log, start_new_session=True, env=environment
    )
    base = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{base}/ping", timeout=5)
                break
            except OSError:
                assert server.poll() is None, (log.seek(0), log.read())[1]
                time.sleep(0.5)
        yield base
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)
        log.close()


def post(base: str, body: bytes, kind: str = "application/json") -> tuple[int, str]:
    request = urllib.request.Request(f"{base}/invocations", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def asked(*images: str, **params: float) -> bytes:
    records = [{"image": image} for image in images]
    return json.dumps({"dataframe_records": records, "params": params}).encode()


@pytest.mark.slow
def test_over_http(address):
    picture = scene(0, 1, 120)[0]
    status, body = post(address, asked(text(encoded(picture, ".jpg")), text(WHOLE), score=0.1))
    assert status == 200, body
    first, second = json.loads(body)["predictions"]
    assert (first["width"], second["width"]) == (120, 96) and first["detections"]
    for says, image in BAD.items():
        status, body = post(address, asked(image))
        assert 400 <= status < 500 and says in body, (status, body[:200])
        assert len(body) < 20_000
    for body in (
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"inputs": 5}',
        b'{"dataframe_records": 3}',
    ):
        assert 400 <= post(address, body)[0] < 500, body
    for record in ({"picture": text(WHOLE)}, {"image": None}, {"image": 5}, {"image": [1, 2]}):
        body = json.dumps({"dataframe_records": [record]}).encode()
        assert 400 <= post(address, body)[0] < 500, record
    assert 400 <= post(address, WHOLE, "image/png")[0] < 500
    assert 400 <= post(address, asked(text(WHOLE), score="high"))[0] < 500
    status, again = post(address, asked(text(WHOLE), score=0.1))
    assert status == 200 and json.loads(again)["predictions"] == [second]
