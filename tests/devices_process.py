"""Draws requests on every device of this machine, all at once: run by test_devices.py, with several fake devices.

python tests/devices_process.py OUT.npz PROMPT...        the codes of prompt i, and how many slots were used
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

import dalle_mini


def main(out: str, *prompts: str) -> None:
    with dalle_mini.load("emoji", rerank=False) as pipeline:
        engines = pipeline.scheduler.engines
        used = np.zeros(len(engines), np.int32)  # most slots at once
        together = [0]  # most slots of all engines at once
        for i, engine in enumerate(engines):
            assert engine.device == jax.devices()[i]

            def decode(engine=engine, i=i, decode=engine.decode) -> None:
                used[i] = max(used[i], engine.slots_in_use)
                together[0] = max(together[0], pipeline.scheduler.slots_in_use)
                decode()

            engine.decode = decode
        with ThreadPoolExecutor(len(prompts)) as pool:
            asked = [pool.submit(pipeline.generate, prompt, seed=i) for i, prompt in enumerate(prompts)]
            galleries = [job.result() for job in asked]
    codes = [np.stack([c.codes for c in sorted(g, key=lambda c: c.index)]) for g in galleries]
    np.savez(out, used=used, together=together[0], codes=np.stack(codes))


if __name__ == "__main__":
    main(*sys.argv[1:])
