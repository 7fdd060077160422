#!/bin/bash
# The first process of a node, in mount, pid, uts, ipc and cgroup namespaces of its
# own: containerd and a kubelet. The network is the host's: its pods have to be of
# the host's network, too. When this process ends, all of the node does.
#   node.sh DIR CONTAINERD_DIR RUNC KUBELET KUBECONFIG REGISTRY
set -eu
D=$1 BIN=$2 RUNC=$3 KUBELET=$4 KUBECONFIG=$5 REGISTRY=$6
hostname "$NODE"
# A root of its own: the disk without whatever else is mounted on the machine, which
# a copy of a mount here would keep alive.
mount --make-rprivate /
R=$D/root; mkdir -p "$R"; mount --bind / "$R"
mount -t proc proc "$R/proc"; mount -t sysfs sysfs "$R/sys"
for d in run dev; do mount -t tmpfs -o mode=755 tmpfs "$R/$d"; done
cd "$R/dev"; mkdir pts shm mqueue
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts pts
mount -t tmpfs -o mode=1777 tmpfs shm; mount -t mqueue mqueue mqueue
for d in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 kmsg:1:11; do
  IFS=: read -r n a b <<<"$d"; mknod -m 666 "$n" c "$a" "$b"
done
ln -s pts/ptmx ptmx; ln -s /proc/self/fd fd; ln -s fd/0 stdin; ln -s fd/1 stdout; ln -s fd/2 stderr
cd "$R"; pivot_root . .; umount -l .; cd /
mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
for c in cpu cpuacct cpuset memory devices freezer blkio pids; do mkdir /sys/fs/cgroup/$c; mount -t cgroup -o $c none /sys/fs/cgroup/$c; done
mkdir /sys/fs/cgroup/systemd; mount -t cgroup -o none,name=systemd none /sys/fs/cgroup/systemd
for d in var/lib/containerd var/lib/kubelet var/log/pods var/log/containers var/lib/cni etc/cni/net.d; do
  mkdir -p "$D/$d" "/$d"; mount --bind "$D/$d" "/$d"
done
# What the kubelet would otherwise write for the whole machine, it finds as it wants it.
mkdir -p "$D/sysctl"
for s in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
  f=$D/sysctl/$(basename "${s%=*}"); echo "${s#*=}" >"$f"; mount --bind "$f" "/proc/sys/${s%=*}"
done
mount --make-rshared /
# A network plugin is never called, since pods are of the host's network; the node is
# not ready without one.
echo '{"cniVersion":"1.0.0","name":"none","plugins":[{"type":"loopback"}]}' >/etc/cni/net.d/10-none.conflist
mkdir -p "$D/certs.d/$REGISTRY"
printf 'server = "http://%s"\n' "$REGISTRY" >"$D/certs.d/$REGISTRY/hosts.toml"
cat >"$D/containerd.toml" <<C
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = '$REGISTRY/test/pause:1'
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = '$D/certs.d'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = '$RUNC'
      SystemdCgroup = false
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['$BIN']
    conf_dir = '/etc/cni/net.d'
C
cat >"$D/kubelet.yaml" <<C
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
address: 127.0.0.1
port: $KUBELET_PORT
healthzPort: 0
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}, x509: {clientCAFile: $D/../pki/apiserver.crt}}
authorization: {mode: AlwaysAllow}
makeIPTablesUtilChains: false
failSwapOn: false
oomScoreAdj: 0
evictionHard: {memory.available: "0%", nodefs.available: "0%", imagefs.available: "0%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
nodeStatusUpdateFrequency: 2s
C
PATH=$BIN:$PATH containerd -c "$D/containerd.toml" >>"$D/containerd.log" 2>&1 &
for _ in $(seq 300); do [ -S /run/containerd/containerd.sock ] && break; sleep 0.02; done
"$KUBELET" --config="$D/kubelet.yaml" --kubeconfig="$KUBECONFIG" --hostname-override="$NODE" --node-ip=127.0.0.1 --cert-dir="$D/kubelet-pki" >>"$D/kubelet.log" 2>&1 &
set +e
# Once the kubelet has looked at them /proc has to be whole again.
for _ in $(seq 600); do [ -d /sys/fs/cgroup/memory/kubepods ] && break; sleep 0.05; done
umount /proc/sys/vm/overcommit_memory /proc/sys/kernel/panic /proc/sys/kernel/panic_on_oops
while :; do wait -n; sleep 0.2; done
