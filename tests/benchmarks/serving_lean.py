"""A lean handler, as somebody writes it by hand who has one model and no journal: FastAPI, orjson, the booster at once.

python -m tests.benchmarks.serving_lean --port 8081
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as our API

import numpy as np
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

from tasks import params
from tasks.serving import versions
from tasks.training.model import Model

home = params.home()
number = versions.served_number(home)
model = Model.load(versions.folder(home) / str(number) / "model.ubj")
booster, names = model.booster, model.spec.names
codes = {feature.name: model.spec.codes[feature.name] for feature in model.spec.features if feature.kind == "category"}
(slope,), shift = (model.spec.coef[0], model.spec.intercept[0]) if model.spec.coef else ((1.0,), 0.0)
app = FastAPI()


@app.get("/ready")
async def ready() -> dict[str, bool]:
    return {"ready": True}


@app.post("/predict")
async def predict(request: Request) -> Response:
    body = orjson.loads(await request.body())
    columns = body.get("inputs") or {name: [row.get(name) for row in body["rows"]] for name in names}
    matrix = np.empty((len(columns[names[0]]), len(names)), np.float32)
    for i, name in enumerate(names):
        values = columns[name]
        if name in codes:
            matrix[:, i] = [codes[name].get(value, np.nan) for value in values]
        else:
            matrix[:, i] = [np.nan if value is None else value for value in values]
    margins = booster.inplace_predict(matrix, predict_type="margin").astype(np.float64)
    scores = 1 / (1 + np.exp(-(margins * slope + shift)))  # calibrated, as the model says
    return Response(orjson.dumps({"predictions": scores.tolist()}), media_type="application/json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port, access_log=False, server_header=False)
