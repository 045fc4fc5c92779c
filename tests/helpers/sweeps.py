"""Results of sweeps that were never run, to draw curves and tables from."""


def facts(*arms):
    points = [
        {
            "arm": name,
            "kind": kind,
            "knob": "k",
            "value": i,
            "work": w,
            "errors": [e, 2 * e],
            "failure": None,
            "seconds": 1.0,
        }
        | {"psnr": [30.0], "ssim": [0.9], "attributes": [1.0]}
        for name, kind, points in arms
        for i, (w, e) in enumerate(points)
    ]
    setting = {"steps": 28, "guidance": 3.5, "batch": 8, "shift": 1.0, "solver": "euler"}
    scale = {"discretisation": [0.01], "jaggedness": {"0.5": 1.1}, "uncached_seconds": 2.0, "captions": ["a", "b"]}
    return {"setting": setting, "points": points, **scale}
