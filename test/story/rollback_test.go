package story

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apparate/apparate/snapshotter/host"
	"github.com/apparate/apparate/test/cluster"
)

// stubborn is a way to restart containerd after which a service, $1, does not come back
// as long as containerd has our drop-in.
const stubborn = `#!/bin/sh
if [ -e /run/apparate/containerd/apparate.toml ]; then touch /run/service/$1.down; else rm -f /run/service/$1.down; fi
kill $(cat /run/service/$1.pid) 2>/dev/null
[ $1 = containerd ] || kill $(cat /run/service/containerd.pid)
echo "restarted with $1" >>/root/restarts
`

// TestRollBack: where containerd does not come back with the new configuration, or the
// kubelet does not, the node goes back by itself and is Ready again.
func TestRollBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, cluster.Options{Nodes: 2, Node: func(int) cluster.NodeOptions {
		return cluster.NodeOptions{Prepare: func(n *cluster.Node) error {
			return os.WriteFile(n.Path("/usr/local/bin/restart-runtime"), []byte(stubborn), 0o755)
		}}
	}})
	w.convertNginx()
	before := w.traces()
	for _, service := range []string{"containerd", "kubelet"} {
		w.part(service+" does not come back", func(w *world) { w.rollBack(service, before) })
	}
}

func (w *world) rollBack(service string, before map[string][]string) {
	node := map[string]string{"containerd": "node-1", "kubelet": "node-2"}[service]
	n := w.node(node)
	args := append([]string{"upgrade", "--install", "apparate", filepath.Join(w.root, "charts", "apparate"), "-n", namespace, "--create-namespace"}, flags()...)
	w.helmRun(append(args, "--set", "node.restartCommand={restart-runtime,"+service+"}")...)
	w.label(node)
	var s host.Status
	w.eventually(node+" to go back", 4*time.Minute, func(context.Context) error {
		// The API server may not know yet: what the node itself says.
		out, err := n.Exec(w.t.Context(), "/var/lib/apparate/bin/apparate-node", "status")
		if err == nil || !strings.Contains(out, "olled back") {
			return errors.Join(err, errors.New(out))
		}
		return nil
	})
	if err := w.WaitReady(w.t.Context(), n); err != nil {
		w.t.Fatal(err)
	}
	w.eventually(node+" to say why", time.Minute, func(ctx context.Context) (err error) {
		if s, err = w.nodeStatus(ctx, node); err == nil && (s.State != host.Broken || s.Reason != host.ReasonRolledBack) {
			err = fmt.Errorf("it says %+v", s)
		}
		return err
	})
	w.t.Logf("%s: %s", node, s.Message)
	if err := w.sameConfig(n, before); err != nil {
		w.t.Errorf("containerd's configuration: %v", err)
	}
	restarts, err := os.ReadFile(n.Path("/root/restarts"))
	if got := strings.Count(string(restarts), "restarted with "+service); err != nil || got != 2 {
		w.t.Errorf("containerd was restarted %d times, want there and back: %v", got, err)
	}
	w.kubectl(web("after-"+service, "nginx:latest-apparate", "", on(node)), "apply", "-f", "-")
	w.podsReady("app=after-"+service, time.Now())
}
