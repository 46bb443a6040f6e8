#!/usr/bin/env bash
# The whole experiment, the most important part first. It starts nothing new after MINUTES; the same command goes on.
#
#     examples/reproduce/matrix.sh DATA WORK MINUTES [options of detection.py, such as --device cuda]
#
# DATA holds cifar10/, cifar100/, imagenette/ and tiny-imagenet-40/, each with train/ and test/ in ImageFolder layout.
# Meant for a GPU, where `auto` is ResNet-18; every line says which question it answers.
set -euo pipefail
data=$1 work=$2 end=$((SECONDS + 60 * $3))
shift 3
here=$(cd "$(dirname "$0")" && pwd)
options=("$@")

run() {
    local left=$(((end - SECONDS) / 60))
    ((left > 0)) || return 0
    python "$here/detection.py" --work "$work" --per-class 5000 --minutes "$left" "${options[@]}" "$@"
}

run --data "$data/cifar10" --attacks none paper --rates 0.05 --seeds 11           # does it find all eight?
run --data "$data"/{cifar10,cifar100,imagenette,tiny-imagenet-40} --attacks none --seeds 11 12 13 # false alarms
run --data "$data/cifar10" --attacks paper --rates 0.01 0.003 0.1 0.2 --seeds 11  # at any rate?
run --data "$data/cifar10" --attacks paper --rates 0.05 --seeds 12 13             # spread
run --data "$data/cifar10" --attacks wider graded decoy contested --rates 0.05 --seeds 11
run --data "$data"/{cifar100,imagenette,tiny-imagenet-40} --attacks badnets blend sig wanet --rates 0.05 --seeds 11
run --data "$data/cifar10" --attacks badnets blend sig wanet --rates 0.05 --seeds 11 \
    --models resnet34 mobilenetv2_100 vit_tiny_patch16_224 convnext_atto

# each choice moved alone; an attack that is easy and two that are not
for change in partition.patch={0.25,0.75,1.0} partition.epsilon={0.03,0.12} partition.steps={1,4} partition.masks={1,4} \
    partition.rate={0.1,0.3,0.5} 'separation.parts=2 separation.examined=6' enhancement.rounds=1 enhancement.steps={60,240} \
    enhancement.training.learning_rate={0.02,0.1} identification.even_odds={0.1,0.4} looks=1; do
    run --data "$data/cifar10" --attacks none badnets tact adaptive-blend --rates 0.05 --seeds 11 --override $change # one word or two
done
