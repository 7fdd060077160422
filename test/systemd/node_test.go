package systemd

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/apparate/apparate/snapshotter/service"
	"github.com/apparate/apparate/test/registry"
	"github.com/apparate/apparate/test/tools"
)

// node is a machine with containerd, and a registry beside it.
type node struct {
	*Machine
	reg      *registry.Registry
	apparate string // the built program
}

const (
	program = "/var/lib/apparate/bin/apparate"
	root    = "/var/lib/apparate/snapshots"
	socket  = "/run/apparate/snapshotter.sock"
	unit    = "apparate.service"
)

const containerdConfig = `version = 3
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "apparate"

[proxy_plugins.apparate]
  type = "snapshot"
  address = "` + socket + `"
  [proxy_plugins.apparate.exports]
    root = "` + root + `"
    enable_remote_snapshot_annotations = "true"
`

// start boots a node that has the snapshotter's program, and in containerd's
// configuration its socket.
func start(t *testing.T, o Options) *node { return startWith(t, o, containerdConfig) }

func startWith(t *testing.T, o Options, config string) *node {
	t.Helper()
	n := &node{reg: registry.New(t)}
	top, err := tools.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n.apparate = filepath.Join(top, "bin", "apparate")
	b, err := os.ReadFile(n.apparate)
	if err != nil {
		t.Fatalf("%v: run 'make build' first, or 'make e2e'", err)
	}
	o.Prepare = func(m *Machine) error {
		hosts := m.Path("/etc/containerd/certs.d/" + n.reg.Host())
		return errors.Join(
			os.MkdirAll(hosts, 0o755), os.MkdirAll(filepath.Dir(m.Path(program)), 0o755), os.WriteFile(m.Path(program), b, 0o755),
			os.WriteFile(filepath.Join(hosts, "hosts.toml"), fmt.Appendf(nil, "server = %q\n", n.reg.URL()), 0o644),
			os.WriteFile(m.Path("/etc/containerd/config.toml"), []byte(config), 0o644),
		)
	}
	n.Machine = Start(t, o)
	return n
}

// daemon is the snapshotter as a service.
func daemon() service.Daemon {
	return service.Daemon{
		Name: "apparate", Description: "Lazy images, 100% of them",
		Argv: []string{
			program, "snapshotter", "--root", root, "--address", socket, "--hosts-dir", "/etc/containerd/certs.d", "--background-fetch-delay=-1s",
		},
		Env: []string{"HOME=/root"}, Before: []string{"containerd.service", "k3s.service"}, Mounts: []string{root},
		PostStart:   []string{"/bin/sh", "-c", "echo started for $HOME >>/var/lib/apparate/started; exit 1"},
		Descriptors: 3,
	}
}

// do runs the program inside, which has to succeed, and reads what it prints into v,
// unless that is nil.
func (n *node) do(t *testing.T, v any, args ...string) {
	t.Helper()
	out, err := n.Exec(t.Context(), "/opt/inside", args...)
	if err == nil && v != nil {
		err = json.Unmarshal([]byte(out), v)
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// fails runs the program inside, which has to fail, and returns why.
func (n *node) fails(t *testing.T, args ...string) string {
	t.Helper()
	out, err := n.Exec(t.Context(), "/opt/inside", args...)
	if err == nil {
		t.Fatalf("%v succeeds: %s", args, out)
	}
	return err.Error()
}

func (n *node) install(t *testing.T, d service.Daemon) (changed bool) {
	t.Helper()
	n.do(t, &changed, "install", text(t, d))
	return changed
}

func text(t *testing.T, d service.Daemon) string {
	t.Helper()
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (n *node) status(t *testing.T, name string) (st service.Status) {
	t.Helper()
	n.do(t, &st, "status", name)
	return st
}

// sh runs a command of the machine, which has to succeed.
func (n *node) sh(t *testing.T, script string) string {
	t.Helper()
	out, err := n.Exec(t.Context(), "/bin/sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// property is one of a unit.
func (n *node) property(t *testing.T, unit, name string) string {
	t.Helper()
	return n.sh(t, "systemctl show --value -p "+name+" "+unit)
}

// mounts are those below the snapshotter's directory, as a machine's process sees them.
func (n *node) mounts(t *testing.T) []*mountinfo.Info {
	t.Helper()
	f, err := os.Open(n.Path("/proc/1/mountinfo"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // only read
	all, err := mountinfo.GetMountsFromReader(f, mountinfo.PrefixFilter("/var/lib/apparate"))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// connection is the number of the FUSE connection.
func (n *node) connection(t *testing.T) int {
	t.Helper()
	var all []int
	for _, m := range n.mounts(t) {
		if m.FSType == "fuse.apparate" {
			all = append(all, m.Minor)
		}
	}
	if len(all) != 1 {
		t.Fatalf("FUSE connections: %v, want one", all)
	}
	return all[0]
}

// eventually waits until ok; it fails the test after two minutes.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

// ready waits until another process than before serves.
func (n *node) ready(t *testing.T, before int) service.Status {
	t.Helper()
	var st service.Status
	eventually(t, "the service is ready again", func() bool {
		st = n.status(t, "apparate")
		return st.Ready && st.PID != before
	})
	return st
}

// reader is a container that reads one cold file after the other.
type reader struct {
	n    *node
	id   string
	sums []string
}

func (n *node) read(t *testing.T, ref string, sums []string, id string) *reader {
	t.Helper()
	n.sh(t, "ctr run -d --cpu-shares 0 --snapshotter apparate --log-uri file:///var/log/"+id+".log "+ref+" "+id+
		` /bin/sh -c 'for f in /data/*; do sha256sum $f || echo failed; sleep 0.2; done'`)
	r := &reader{n, id, sums}
	r.goesOn(t)
	return r
}

func (r *reader) lines(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile(r.n.Path("/var/log/" + r.id + ".log"))
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Split(string(b), "\n")
	return all[:len(all)-1]
}

// goesOn waits until it has read several more files, all of them rightly.
func (r *reader) goesOn(t *testing.T) {
	t.Helper()
	const more = 4
	was := len(r.lines(t))
	if was+more >= len(r.sums) {
		t.Fatalf("%s has read all files", r.id)
	}
	eventually(t, r.id+" goes on", func() bool { return len(r.lines(t)) >= was+more })
	if got := r.lines(t); !slices.Equal(got, r.sums[:len(got)]) {
		t.Fatalf("%s reads wrong bytes, or none: %q", r.id, got[was:])
	}
}

func (r *reader) stop(t *testing.T) {
	t.Helper()
	r.n.sh(t, "ctr task rm --force "+r.id+" 2>&1; ctr container rm "+r.id)
}
