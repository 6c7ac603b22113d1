# shellcheck shell=bash
# Source this before `mpirun` on several hosts: `. launch/mpi.sh`.
#
# Open MPI 4 gives a host that fell silent eight minutes, and its mpirun does not end before. With
# these it is given 10 s: probes after 4 s of silence, every 2 s, three times. That is below
# runtime.liveness_seconds (15), so that mpirun has given the host up when Amur ends the job: what
# mpirun had sent by then would be repeated for a quarter of an hour. What is already set is kept;
# other MPIs do not look at these names.
export OMPI_MCA_oob_tcp_keepalive_time=${OMPI_MCA_oob_tcp_keepalive_time:-4}
export OMPI_MCA_oob_tcp_keepalive_intvl=${OMPI_MCA_oob_tcp_keepalive_intvl:-2}
export OMPI_MCA_oob_tcp_keepalive_probes=${OMPI_MCA_oob_tcp_keepalive_probes:-3}
# Open MPI refuses root unless told twice.
if [ "$(id -u)" = 0 ]; then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
