"""The messages of TensorFlow Serving over gRPC, and of the standard health service.

Owns names and field numbers, as far as they are used here. `tests/conformance` holds each of them
against what the clients' own modules say.

Sources: tensorflow_serving/apis of tensorflow/serving; core/framework, core/example and
core/protobuf/meta_graph.proto of tensorflow/tensorflow; grpc/health/v1 of grpc/grpc-proto.
"""

from __future__ import annotations

from typing import Any, Final

from aiaas_magics.backend.serving.grpc.proto_schema import Description, build

PREDICTION_SERVICE: Final = "tensorflow.serving.PredictionService"
MODEL_SERVICE: Final = "tensorflow.serving.ModelService"
HEALTH_SERVICE: Final = "grpc.health.v1.Health"

WELL_KNOWN: Final = Description(
    "google.protobuf",
    """
    Any: string type_url 1, bytes value 2
    Int64Value: int64 value 1
    """,
)

TENSORFLOW: Final = Description(
    "tensorflow",
    """
    enum DataType: DT_INVALID 0, DT_FLOAT 1, DT_DOUBLE 2, DT_INT32 3, DT_UINT8 4, DT_INT16 5, DT_INT8 6, DT_STRING 7, DT_COMPLEX64 8, \
        DT_INT64 9, DT_BOOL 10, DT_BFLOAT16 14, DT_UINT16 17, DT_COMPLEX128 18, DT_HALF 19, DT_UINT32 22, DT_UINT64 23
    TensorShapeProto: repeated Dim dim 2, bool unknown_rank 3
    TensorShapeProto.Dim: int64 size 1, string name 2
    TensorProto: DataType dtype 1, TensorShapeProto tensor_shape 2, bytes tensor_content 4, repeated float float_val 5, \
        repeated double double_val 6, repeated int32 int_val 7, repeated bytes string_val 8, repeated int64 int64_val 10, \
        repeated bool bool_val 11, repeated int32 half_val 13, repeated uint32 uint32_val 16, repeated uint64 uint64_val 17

    BytesList: repeated bytes value 1
    FloatList: repeated float value 1
    Int64List: repeated int64 value 1
    Feature: BytesList bytes_list 1 of kind, FloatList float_list 2 of kind, Int64List int64_list 3 of kind
    Features: map<string,Feature> feature 1
    Example: Features features 1

    TensorInfo: string name 1 of encoding, DataType dtype 2, TensorShapeProto tensor_shape 3
    SignatureDef: map<string,TensorInfo> inputs 1, map<string,TensorInfo> outputs 2, string method_name 3
    """,
)

CODES: Final = Description(
    "tensorflow.error",
    "enum Code: OK 0, CANCELLED 1, UNKNOWN 2, INVALID_ARGUMENT 3, DEADLINE_EXCEEDED 4, NOT_FOUND 5, INTERNAL 13, UNAVAILABLE 14",
)

SERVING: Final = Description(
    "tensorflow.serving",
    """
    ModelSpec: string name 1, google.protobuf.Int64Value version 2 of version_choice, string signature_name 3, \
        string version_label 4 of version_choice
    PredictRequest: ModelSpec model_spec 1, map<string,TensorProto> inputs 2, repeated string output_filter 3
    PredictResponse: map<string,TensorProto> outputs 1, ModelSpec model_spec 2

    ExampleList: repeated Example examples 1
    ExampleListWithContext: repeated Example examples 1, Example context 2
    Input: ExampleList example_list 1 of kind, ExampleListWithContext example_list_with_context 2 of kind
    Class: string label 1, float score 2
    Classifications: repeated Class classes 1
    ClassificationResult: repeated Classifications classifications 1
    ClassificationRequest: ModelSpec model_spec 1, Input input 2
    ClassificationResponse: ClassificationResult result 1, ModelSpec model_spec 2
    Regression: float value 1
    RegressionResult: repeated Regression regressions 1
    RegressionRequest: ModelSpec model_spec 1, Input input 2
    RegressionResponse: RegressionResult result 1, ModelSpec model_spec 2

    SignatureDefMap: map<string,SignatureDef> signature_def 1
    GetModelMetadataRequest: ModelSpec model_spec 1, repeated string metadata_field 2
    GetModelMetadataResponse: ModelSpec model_spec 1, map<string,google.protobuf.Any> metadata 2

    StatusProto: tensorflow.error.Code error_code 1, string error_message 2
    GetModelStatusRequest: ModelSpec model_spec 1
    ModelVersionStatus: int64 version 1, State state 2, StatusProto status 3
    enum ModelVersionStatus.State: UNKNOWN 0, START 10, LOADING 20, AVAILABLE 30, UNLOADING 40, END 50
    GetModelStatusResponse: repeated ModelVersionStatus model_version_status 1
    """,
    needs=(WELL_KNOWN, TENSORFLOW, CODES),
)

HEALTH: Final = Description(
    "grpc.health.v1",
    """
    HealthCheckRequest: string service 1
    HealthCheckResponse: ServingStatus status 1
    enum HealthCheckResponse.ServingStatus: UNKNOWN 0, SERVING 1, NOT_SERVING 2, SERVICE_UNKNOWN 3
    """,
)

tensorflow: Any
serving: Any
health: Any
tensorflow, serving, health = build(TENSORFLOW, SERVING, HEALTH)
