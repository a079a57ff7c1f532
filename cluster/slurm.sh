#!/usr/bin/env bash
# One rayalign run on Slurm: a Ray cluster over the nodes of the job, one submission, and a clean end.
#
#   cd the-checkout && make env EXTRA=gpu       # on a file system that every node sees
#   sbatch cluster/slurm.sh configs/rft.yaml placement.policy.gpus=8 placement.rollout.gpus=8 ...
#
# The arguments are those of `rayalign train`. The job's exit status is the run's. Options given to sbatch on the command
# line win over these; some sites want --gres=gpu:8 for --gpus-per-node=8.
#SBATCH --job-name=rayalign
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?run this with sbatch, from the root of the checkout}"
export PATH="$PWD/.venv/bin:$PATH"
die() {
    echo "slurm.sh: $1" >&2
    exit 2
}
[ $# -ge 1 ] || die "name a configuration: sbatch cluster/slurm.sh configs/rft.yaml [key.sub=value ...]"
command -v rayalign >/dev/null || die "there is no rayalign in $PWD/.venv: run make env EXTRA=gpu there first"

# A token of this job only, in a file that only you can read and every node sees. Without it, anybody who reaches the
# head's ports could run code as you.
token_file=$HOME/.ray/rayalign-$SLURM_JOB_ID.token
(
    umask 077
    mkdir -p "$HOME/.ray"
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$token_file"
)
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token_file"

# Ports of this job's own, so that two jobs may share a node, and outside those Ray gives to its workers (10002 to 19999).
gcs_port=$((20000 + SLURM_JOB_ID % 3000))
dashboard_port=$((gcs_port + 3000))
agent_port=$((gcs_port + 6000)) # jobs go through it
client_port=$((gcs_port + 9000))
temp_dir=/tmp/ray-$SLURM_JOB_ID # short: the path of a socket has at most 107 characters

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
head_ip=${HEAD_IP:-$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname -I | awk '{ print $1 }')}
dashboard=http://$head_ip:$dashboard_port
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # steps do not take it over by themselves
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=5 # Ray's 30 s reach into Slurm's grace period

steps=()
submitted=
cleanup() {
    trap - EXIT TERM INT
    [ -z "$submitted" ] || timeout 20 ray job stop --no-wait --address "$dashboard" "$submitted" >/dev/null 2>&1 || true
    for step in "${steps[@]}"; do kill "$step" 2>/dev/null || true; done
    for step in "${steps[@]}"; do wait "$step" 2>/dev/null || true; done
    srun --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" --ntasks-per-node=1 rm -rf "$temp_dir" || true
    rm -f "$token_file"
}
trap cleanup EXIT
trap 'exit 143' TERM INT

start_ray() { # SRUN-OPTIONS... -- RAY-START-OPTIONS...
    local srun_options=()
    while [ "$1" != -- ]; do srun_options+=("$1") && shift; done
    shift
    srun "${srun_options[@]}" ray start "$@" --num-cpus="$SLURM_CPUS_PER_TASK" --temp-dir="$temp_dir" \
        --dashboard-agent-listen-port="$agent_port" --disable-usage-stats --block &
    steps+=($!)
}

start_ray --nodes=1 --ntasks=1 --nodelist="$head" -- --head --node-ip-address="$head_ip" --port="$gcs_port" \
    --dashboard-host="$head_ip" --dashboard-port="$dashboard_port" --ray-client-server-port="$client_port"

# wait_for_nodes N: until N nodes are alive, for five minutes at most.
wait_for_nodes() {
    local alive=0 deadline=$((SECONDS + 300))
    while [ "$alive" -lt "$1" ]; do
        [ "$SECONDS" -lt "$deadline" ] || die "only $alive of ${#nodes[@]} nodes joined within five minutes; see above"
        kill -0 "${steps[0]}" 2>/dev/null || die "Ray's head ended; see above"
        sleep 3
        alive=$(timeout 30 ray list nodes --address "$dashboard" --filter state=ALIVE --format json 2>/dev/null |
            grep -o '"node_id"' | wc -l || true)
    done
    echo "slurm.sh: $alive of ${#nodes[@]} nodes are up"
}

wait_for_nodes 1
workers=$((${#nodes[@]} - 1))
if [ "$workers" -gt 0 ]; then
    start_ray --nodes="$workers" --ntasks="$workers" --ntasks-per-node=1 --exclude="$head" -- \
        --address="$head_ip:$gcs_port"
    wait_for_nodes "${#nodes[@]}"
fi

# The run's folder is not the working directory: Ray copies that to the head, and throws it away afterwards. In the
# background, so that a signal is answered at once.
submitted=rayalign-$SLURM_JOB_ID
ray job submit --address "$dashboard" --submission-id "$submitted" --working-dir . -- \
    rayalign train "$1" run_dir="$PWD/runs" placement.address=auto "${@:2}" &
steps+=($!)
status=0
wait $! || status=$?
submitted=
exit "$status"
