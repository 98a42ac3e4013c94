"""The messages of Open Inference Protocol v2 over gRPC, with the extensions that Triton's clients call.

Owns names and field numbers, as far as they are used here. `tests/conformance` holds each of them
against what the clients' own modules say.

Of the two requests that load and unload a model KServe and Triton have different numbers: KServe's
model name is where Triton has a repository's. Here are Triton's, and KServe's answers, which Triton leaves empty.

Sources: specification/protocol/open_inference_grpc.proto of kserve/open-inference-protocol;
protobuf/grpc_service.proto and model_config.proto of triton-inference-server/common.
"""

from __future__ import annotations

from typing import Any, Final

from aiaas_magics.backend.serving.grpc.proto_schema import Description, build

SERVICE: Final = "inference.GRPCInferenceService"

INFERENCE: Final = Description(
    "inference",
    """
    ServerLiveRequest:
    ServerLiveResponse: bool live 1
    ServerReadyRequest:
    ServerReadyResponse: bool ready 1
    ModelReadyRequest: string name 1, string version 2
    ModelReadyResponse: bool ready 1
    ServerMetadataRequest:
    ServerMetadataResponse: string name 1, string version 2, repeated string extensions 3
    ModelMetadataRequest: string name 1, string version 2
    ModelMetadataResponse: string name 1, repeated string versions 2, string platform 3, repeated TensorMetadata inputs 4, \
        repeated TensorMetadata outputs 5
    ModelMetadataResponse.TensorMetadata: string name 1, string datatype 2, repeated int64 shape 3

    InferParameter: bool bool_param 1 of parameter_choice, int64 int64_param 2 of parameter_choice, \
        string string_param 3 of parameter_choice, double double_param 4 of parameter_choice, uint64 uint64_param 5 of parameter_choice
    InferTensorContents: repeated bool bool_contents 1, repeated int32 int_contents 2, repeated int64 int64_contents 3, \
        repeated uint32 uint_contents 4, repeated uint64 uint64_contents 5, repeated float fp32_contents 6, \
        repeated double fp64_contents 7, repeated bytes bytes_contents 8
    ModelInferRequest: string model_name 1, string model_version 2, string id 3, map<string,InferParameter> parameters 4, \
        repeated InferInputTensor inputs 5, repeated InferRequestedOutputTensor outputs 6, repeated bytes raw_input_contents 7
    ModelInferRequest.InferInputTensor: string name 1, string datatype 2, repeated int64 shape 3, \
        map<string,InferParameter> parameters 4, InferTensorContents contents 5
    ModelInferRequest.InferRequestedOutputTensor: string name 1, map<string,InferParameter> parameters 2
    ModelInferResponse: string model_name 1, string model_version 2, string id 3, map<string,InferParameter> parameters 4, \
        repeated InferOutputTensor outputs 5, repeated bytes raw_output_contents 6
    ModelInferResponse.InferOutputTensor: string name 1, string datatype 2, repeated int64 shape 3, \
        map<string,InferParameter> parameters 4, InferTensorContents contents 5
    ModelStreamInferResponse: string error_message 1, ModelInferResponse infer_response 2

    ModelRepositoryParameter: bool bool_param 1 of parameter_choice, int64 int64_param 2 of parameter_choice, \
        string string_param 3 of parameter_choice, bytes bytes_param 4 of parameter_choice
    RepositoryIndexRequest: string repository_name 1, bool ready 2
    RepositoryIndexResponse: repeated ModelIndex models 1
    RepositoryIndexResponse.ModelIndex: string name 1, string version 2, string state 3, string reason 4
    RepositoryModelLoadRequest: string repository_name 1, string model_name 2, map<string,ModelRepositoryParameter> parameters 3
    RepositoryModelLoadResponse: string model_name 1, bool isLoaded 2
    RepositoryModelUnloadRequest: string repository_name 1, string model_name 2, map<string,ModelRepositoryParameter> parameters 3
    RepositoryModelUnloadResponse: string model_name 1, bool isUnloaded 2

    ModelStatisticsRequest: string name 1, string version 2
    StatisticDuration: uint64 count 1, uint64 ns 2
    InferStatistics: StatisticDuration success 1, StatisticDuration fail 2, StatisticDuration queue 3, \
        StatisticDuration compute_input 4, StatisticDuration compute_infer 5, StatisticDuration compute_output 6, \
        StatisticDuration cache_hit 7, StatisticDuration cache_miss 8
    InferBatchStatistics: uint64 batch_size 1, StatisticDuration compute_input 2, StatisticDuration compute_infer 3, \
        StatisticDuration compute_output 4
    ModelStatistics: string name 1, string version 2, uint64 last_inference 3, uint64 inference_count 4, uint64 execution_count 5, \
        InferStatistics inference_stats 6, repeated InferBatchStatistics batch_stats 7
    ModelStatisticsResponse: repeated ModelStatistics model_stats 1

    enum DataType: TYPE_INVALID 0, TYPE_BOOL 1, TYPE_UINT8 2, TYPE_UINT16 3, TYPE_UINT32 4, TYPE_UINT64 5, TYPE_INT8 6, TYPE_INT16 7, \
        TYPE_INT32 8, TYPE_INT64 9, TYPE_FP16 10, TYPE_FP32 11, TYPE_FP64 12, TYPE_STRING 13, TYPE_BF16 14
    ModelConfigRequest: string name 1, string version 2
    ModelConfigResponse: ModelConfig config 1
    ModelConfig: string name 1, string platform 2, int32 max_batch_size 4, repeated ModelInput input 5, repeated ModelOutput output 6, \
        repeated ModelInstanceGroup instance_group 7, ModelDynamicBatching dynamic_batching 11 of scheduling_choice, \
        map<string,ModelParameter> parameters 14, string backend 17
    ModelParameter: string string_value 1
    ModelTensorReshape: repeated int64 shape 1
    ModelInput: string name 1, DataType data_type 2, repeated int64 dims 4, ModelTensorReshape reshape 5
    ModelOutput: string name 1, DataType data_type 2, repeated int64 dims 3, ModelTensorReshape reshape 5
    ModelInstanceGroup: string name 1, int32 count 2, Kind kind 4
    enum ModelInstanceGroup.Kind: KIND_AUTO 0, KIND_GPU 1, KIND_CPU 2, KIND_MODEL 3
    ModelDynamicBatching: repeated int32 preferred_batch_size 1, uint64 max_queue_delay_microseconds 2
    """,
)

inference: Any
(inference,) = build(INFERENCE)
