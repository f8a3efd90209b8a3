import sys, tempfile, statistics as st
from pathlib import Path
from tests.serving.architectures.configs import ARCHITECTURES
from tests.serving.architectures.parity import measure
for name in sys.argv[2:]:
    for dtype in sys.argv[1].split(","):
        folder = Path("/tmp/parity")/name/dtype; folder.mkdir(parents=True, exist_ok=True)
        try:
            p = measure(ARCHITECTURES[name], dtype, folder)
            m = lambda x: f"{st.median(x):.1e} {max(x):.1e}" if x else "-"
            print(name, dtype, p.vllm_class, p.kv_cache, "stream", m(p.stream), "neurons", m(p.neurons), p.without_neurons, f"{p.seconds:.0f}s", flush=True)
        except Exception as e:
            print(name, dtype, "FAILED", type(e).__name__, str(e)[:400], flush=True)
