#!/bin/sh
# The command line of the paper's repository, with its fourteen positional arguments.
#
# CLIENTS=16 edge clients (the paper's number) on NP ranks (a server and one worker per client; fewer ranks also work).
# VENV and MPIRUN as for launch/mpirun.sh; OUT=runs is the folder of run folders.
set -eu
launch=$(cd "$(dirname "$0")" && pwd)

help() {
    cat <<'END_OF_HELP'
usage: [CLIENTS=16] sh launch/run_FedGKT.sh GPU DATASET DISTRIBUTION ROUND EPOCH_CLIENT EPOCH_SERVER OPTM LR \
           TRAIN_OR_NOT DISTILL_ON_SERVER CLIENT_MODEL NAME DATA_DIR BATCH_SIZE [--field value]...

   1 GPU                index of the first GPU to use; ignored without a GPU
   2 DATASET            cifar10, cifar100 or cinic10
   3 DISTRIBUTION       homo or hetero (Dirichlet, alpha 0.5)
   4 ROUND              communication rounds
   5 EPOCH_CLIENT       epochs of each client in a round
   6 EPOCH_SERVER       epochs of the server in a round
   7 OPTM               Adam or SGD, on both sides
   8 LR                 learning rate, on both sides
   9 TRAIN_OR_NOT       1: the clients train; 0: they only upload
  10 DISTILL_ON_SERVER  1: the server's loss has the distillation term; 0: it does not
  11 CLIENT_MODEL       resnet56 or resnet110: the server's model, with a ResNet-8 at the edge
  12 NAME               name of the run
  13 DATA_DIR           folder of the unpacked data set, or its parent folder; a missing CIFAR archive is downloaded
  14 BATCH_SIZE         samples in a batch, on both sides
     --field value      any field of python -m gkt_mpi.main --help, such as --seed 1

for example: sh launch/run_FedGKT.sh 0 cifar10 homo 200 1 20 Adam 0.001 1 0 resnet56 fedml_resnet56_homo_cifar10 "./data/cifar10" 256
END_OF_HELP
}

refuse() {
    echo "run_FedGKT.sh: $1 (sh launch/run_FedGKT.sh --help explains all fourteen)" >&2
    exit 2
}

# one_of NAME VALUE ALLOWED...: refuse a value that is not allowed
one_of() {
    what="$1 is '$2'"
    value=$2
    shift 2
    for allowed in "$@"; do
        [ "$value" != "$allowed" ] || return 0
    done
    refuse "$what; expected one of: $*"
}

# whole NAME VALUE LEAST: refuse values other than integers from LEAST on
whole() {
    case $2 in
    '' | *[!0-9]*) refuse "$1 is '$2'; expected a whole number, at least $3" ;;
    esac
    [ "$2" -ge "$3" ] || refuse "$1 is '$2'; expected at least $3"
}

case ${1:-} in
'' | -h | --help)
    help
    [ $# -gt 0 ] || exit 2
    exit 0
    ;;
esac
if [ $# -lt 14 ]; then
    help >&2
    names="GPU DATASET DISTRIBUTION ROUND EPOCH_CLIENT EPOCH_SERVER OPTM LR TRAIN_OR_NOT DISTILL_ON_SERVER CLIENT_MODEL"
    first_missing=$(echo "$names NAME DATA_DIR BATCH_SIZE" | cut -d " " -f $(($# + 1)))
    echo "run_FedGKT.sh: $# arguments instead of 14; $first_missing ($(($# + 1))) is missing" >&2
    exit 2
fi
gpu=$1 dataset=$2 distribution=$3 rounds=$4 epochs_client=$5 epochs_server=$6 optimizer=$7 lr=$8
shift 8
train=$1 distill_on_server=$2 model=$3 name=$4 data_dir=$5 batch_size=$6
shift 6
case ${1:---} in
--*) ;;
*) refuse "'$1' follows the fourteen arguments; expected nothing, or --field value" ;;
esac

whole "GPU (1)" "$gpu" 0
one_of "DATASET (2)" "$dataset" cifar10 cifar100 cinic10
one_of "DISTRIBUTION (3)" "$distribution" homo hetero
whole "ROUND (4)" "$rounds" 1
whole "EPOCH_CLIENT (5)" "$epochs_client" 0
whole "EPOCH_SERVER (6)" "$epochs_server" 1
one_of "OPTM (7)" "$optimizer" Adam SGD adam sgd
echo "$lr" | grep -Eq '^([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$' && ! echo "$lr" | grep -Eq '^[0.]+([eE]|$)' ||
    refuse "LR (8) is '$lr'; expected a number above 0"
one_of "TRAIN_OR_NOT (9)" "$train" 0 1
one_of "DISTILL_ON_SERVER (10)" "$distill_on_server" 0 1
one_of "CLIENT_MODEL (11)" "$model" resnet56 resnet110
case $name in
'' | . | .. | */*) refuse "NAME (12) is '$name'; expected the name of a folder, without /" ;;
esac
[ -n "$data_dir" ] || refuse "DATA_DIR (13) is empty; expected a folder"
whole "BATCH_SIZE (14)" "$batch_size" 1
clients=${CLIENTS:-16}
whole CLIENTS "$clients" 1
ranks=${NP:-$((clients + 1))}
whole NP "$ranks" 2

# The GPUs from index GPU on, among the visible ones.
if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    gpus=$(echo "$CUDA_VISIBLE_DEVICES" | cut -d , -f "$((gpu + 1))-")
    [ "$gpu" -eq 0 ] || [ "$gpus" != "$CUDA_VISIBLE_DEVICES" ] || gpus= # cut returns lines without a comma unchanged
elif command -v nvidia-smi >/dev/null && nvidia-smi --list-gpus >/dev/null 2>&1; then
    gpus=$(nvidia-smi --list-gpus | sed -n 's/^GPU \([0-9]*\):.*/\1/p' | tail -n "+$((gpu + 1))" | paste -sd , -)
else
    gpus=none
fi
case $gpus in
none) ;;
'') refuse "GPU (1) is $gpu, but there are fewer GPUs; they are counted from 0" ;;
*) export CUDA_VISIBLE_DEVICES="$gpus" ;;
esac

case $optimizer in
[Ss]*) optimizer=sgd weight_decay=0.0005 ;; # as in the paper's code
*) optimizer=adam weight_decay=0.0001 ;;
esac
[ "$train" = 1 ] || epochs_client=0
[ "$distill_on_server" = 1 ] && on_server=true || on_server=false
[ "$dataset" = cinic10 ] && download=false || download=true

VENV=${VENV:-"$launch/../.venv"}
export VENV
exec sh "$launch/mpirun.sh" -np "$ranks" python -m gkt_mpi.main --name "$name" --out "${OUT:-runs}" --clients "$clients" \
    --rounds "$rounds" --data.name "$dataset" --data.dir "$data_dir" --data.download "$download" \
    --data.partition "$distribution" --data.alpha 0.5 \
    --client.epochs "$epochs_client" --server.epochs "$epochs_server" --server.model "$model" \
    --client.optimizer "$optimizer" --server.optimizer "$optimizer" --client.lr "$lr" --server.lr "$lr" \
    --client.weight_decay "$weight_decay" --server.weight_decay "$weight_decay" \
    --client.batch_size "$batch_size" --server.batch_size "$batch_size" --distill.on_server "$on_server" --compute.precision float32 --compute.compile false "$@"
