# Common variables and a function in another file.
source "$(dirname "$0")/common.inc.sh"
start_training examples.own.main_async trainer.fully_async.enabled=true
