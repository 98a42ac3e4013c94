import sys

import uvicorn
from engine import Engine
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
engine = Engine(sys.argv[2])


class Rows(BaseModel):
    instances: list[list[float]]


@app.post("/predict")
async def predict(rows: Rows) -> dict[str, list[list[float]]]:
    return {"predictions": engine(rows.instances)}


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
