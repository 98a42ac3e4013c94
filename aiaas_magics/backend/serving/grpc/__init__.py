"""gRPC: the same models on a port of their own, by the Open Inference Protocol v2 and TensorFlow Serving.

`grpc_server` is the port, `methods` the seam, `open_inference_grpc` and `tfserving_grpc` the protocols, and their
`_schema` modules the messages. The only home of grpc and protobuf; imported when the HTTP port
answers already, since both take a moment.
"""
