"""The same models over gRPC, on a port of their own: Open Inference Protocol v2 and TensorFlow Serving.

`server` is the port, `methods` the seam, `openinference` and `tfserving` the protocols, and their
`_schema` modules the messages. The only home of grpc and protobuf; imported when the HTTP port
answers already, since both take a moment.
"""
