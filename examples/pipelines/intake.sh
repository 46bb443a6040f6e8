#!/usr/bin/env bash
# Take in a delivery of images: print the folder to train on, the delivery itself or a cleaned copy of it.
#
#     folder=$(./intake.sh DELIVERY CLEAN) && python train.py "$folder"
#
# Exit 0 with a folder on stdout, anything else without one. The report stays beside CLEAN.
set -euo pipefail

delivery=${1:?usage: intake.sh DELIVERY CLEAN}
clean=${2:?usage: intake.sh DELIVERY CLEAN}
report=$clean.report.json

# --no-config: a delivery may bring settings and an .advrbdignore along, beside its folder
# --seed: whoever made it may have tried what a scan finds with the default one

# 1 is an answer here, so set -e must not take it for a failure
code=0
advrbd scan --no-config --seed "$RANDOM" --output "$report" --strict -- "$delivery" || code=$?
case $code in
0)
    folder=$delivery
    ;;
1)
    advrbd clean --no-config --report "$report" --out "$clean" --output "$clean.report.csv" --strict -- "$delivery"
    folder=$clean
    ;;
*)
    echo "no verdict on $delivery, so it is not taken in" >&2
    exit "$code"
    ;;
esac
printf '%s\n' "$folder"
