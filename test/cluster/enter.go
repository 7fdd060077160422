package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/apparate/apparate/test/cluster/boot"
)

// doorName is the file below a cluster's directory, or a node's, that says how other
// processes enter it: the arguments of nsenter, with zero bytes between.
const doorName = "door"

// control is what Enter calls the control plane's network.
const control = "control"

// door writes the file by which others enter.
func door(dir string, args []string) error {
	return os.WriteFile(filepath.Join(dir, doorName), []byte(strings.Join(args, "\x00")), 0o600)
}

// join moves a shell into the cgroups of a node, whose namespaces it is in, and makes
// it the command that it is given.
const join = `if [ -e /sys/fs/cgroup/init ]; then echo 0 >/sys/fs/cgroup/init/cgroup.procs
else for g in /sys/fs/cgroup/*/cgroup.procs; do echo 0 >"$g"; done; fi; exec "$@"`

// enterNode are the arguments of nsenter for all namespaces of the process pid.
func enterNode(pid int) []string {
	return []string{fmt.Sprintf("--target=%d", pid), "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--", "/bin/sh", "-c", join, "sh"}
}

// enterSpace are those for the control plane's network.
func (c *Cluster) enterSpace() []string { return []string{"--net=" + c.space.path(), "--"} }

// controlEnv is the environment of programs in the control plane's network: the
// machine's, as far as it leads nowhere else.
func controlEnv(kubeconfig string) []string {
	env := slices.DeleteFunc(os.Environ(), func(e string) bool {
		name, _, _ := strings.Cut(strings.ToLower(e), "=")
		return strings.HasSuffix(name, "_proxy")
	})
	return append(env, "KUBECONFIG="+kubeconfig, "KUBECACHEDIR="+filepath.Join(filepath.Dir(kubeconfig), "cache"))
}

// Enter is a program in a part of the cluster in the directory dir, which another
// process may own: "control" for the control plane's network, with the machine's files
// and KUBECONFIG set, or the name of a node.
func Enter(ctx context.Context, dir, part string, args ...string) (*exec.Cmd, error) {
	at, env := filepath.Join(dir, "nodes", part), boot.Environment()
	if part == control {
		at, env = dir, controlEnv(kubeconfigFile(dir, admin))
	}
	b, err := os.ReadFile(filepath.Join(at, doorName))
	if err != nil {
		return nil, fmt.Errorf("%s is not there, or off: %w", part, err)
	}
	cmd := exec.CommandContext(ctx, "nsenter", append(strings.Split(string(b), "\x00"), args...)...)
	cmd.Env = env
	killGroup(cmd)
	return cmd, nil
}
