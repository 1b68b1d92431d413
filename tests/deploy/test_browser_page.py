"""docs/segment.html segments a photograph in a real browser, with onnxruntime-web from the package index."""

import io
import shutil
import subprocess
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from browser import BROWSER, needs_browser
from conftest import ROOT
from PIL import Image

from segquant.base.config import Eval
from segquant.data.preprocessing import read_preprocessing
from segquant.data.sources import open_source
from segquant.deploy.onnx_export import export_artifact
from segquant.engines.load import load
from segquant.evaluation.predict import predict, prepared

RUNTIME = "onnxruntime-web@1.30.0"
PARTS = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
SENT = """<script>
fetch("photo.png").then((answer) => answer.blob()).then(createImageBitmap).then(segment)
  .then((map) => fetch("map", {method: "POST", body: map}))
  .catch((error) => fetch("map", {method: "POST", body: "error: " + error}));
</script>"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """A folder with onnxruntime-web's files."""
    folder = tmp_path_factory.mktemp("npm")
    if not shutil.which("npm"):
        pytest.skip("needs npm, for onnxruntime-web")
    done = subprocess.run(["npm", "pack", RUNTIME], cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"needs npm's package index: {done.stderr[-200:]}")
    with tarfile.open(folder / done.stdout.strip().splitlines()[-1]) as archive:
        for part in PARTS:
            (folder / part).write_bytes(archive.extractfile(f"package/dist/{part}").read())
    return folder


def segmented(site, profile):
    """The class map that the page sends, uint8 (H*W,)."""
    received, arrived = [], threading.Event()

    class Handler(SimpleHTTPRequestHandler):
        def do_POST(self):
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()
            arrived.set()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        command += ["--remote-debugging-port=0", f"http://127.0.0.1:{server.server_port}/probe.html"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
            try:
                assert arrived.wait(180), "the page sent no class map in three minutes"
            finally:
                browser.kill()
                server.shutdown()
    assert not received[0].startswith(b"error"), received[0]
    return np.frombuffer(received[0], np.uint8)


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(("name", "least"), [("int8_static_qat", 0.99), ("int2_static", 0.99), ("int2_qat", 0.999)])
def test_the_page_gives_the_class_map_of_predict(name, least, runtime, tmp_path):
    """Graphs in int8, of which the browser's kernels round otherwise, and one with 2-bit codes in float32."""
    artifact, site = ROOT / "models/trained" / name, tmp_path / "site"
    shutil.copytree(artifact, site)
    if name == "int2_qat":
        export_artifact(artifact, tmp_path / "out")
        shutil.copy(tmp_path / "out/model.onnx", site)
    for part in PARTS:
        shutil.copy(runtime / part, site)
    (site / "probe.html").write_text((ROOT / "docs/segment.html").read_text() + SENT)
    row = open_source("scenes", "validation", 1)[0]
    image = Image.open(io.BytesIO(row["image"])).convert("RGB")
    image.save(site / "photo.png")
    classes = segmented(site, tmp_path / "profile").reshape(image.height, image.width)
    settings = Eval()
    model = prepared(load(artifact).model, settings)
    (prediction,) = predict(model, [row], "fixed-512x512-v1", settings, read_preprocessing(artifact))
    expected = prediction.classes.numpy()
    assert len(np.unique(expected)) > 3
    agreement = (classes == expected).mean()
    print(f"{name}: {agreement:.2%} of pixels as predict")
    assert agreement > least
