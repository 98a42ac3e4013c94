import sys

import keras
import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
model = keras.models.load_model(f"{sys.argv[2]}/article.keras")


class Rows(BaseModel):
    instances: list[list[float]]


@app.post("/predict")
def predict(rows: Rows) -> dict[str, list[list[float]]]:
    return {"predictions": model.predict(np.asarray(rows.instances, np.float32), verbose=0).tolist()}


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
