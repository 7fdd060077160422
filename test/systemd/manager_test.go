package systemd

import (
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestSnapshotter is the life of the snapshotter as a unit: everything that ends its
// processes leaves the mounts of containers as they are, and they read on.
func TestSnapshotter(t *testing.T) {
	for _, o := range []Options{{Release: Bookworm}, {Release: Trixie, Unified: true}, {Release: Bullseye}} {
		t.Run(o.Release, func(t *testing.T) { life(t, start(t, o)) })
	}
}

func life(t *testing.T, n *node) {
	before := n.traces(t)
	installs(t, n)
	ref, sums := n.push(t)
	n.sh(t, "ctr images pull --hosts-dir /etc/containerd/certs.d --snapshotter apparate "+ref)
	r := n.read(t, ref, sums, "first")
	disturbed(t, n, r)
	runtimes(t, n, r)
	rebooted(t, n, ref, sums)
	removed(t, n, before)
}

// installs installs and starts it.
func installs(t *testing.T, n *node) {
	t.Helper()
	var m struct {
		Name  string
		Keeps bool
	}
	if n.do(t, &m, "manager"); m.Name != "systemd" || !m.Keeps {
		t.Fatalf("the manager is %+v", m)
	}
	if st := n.status(t, "apparate"); st.Installed || st.Running {
		t.Errorf("before: %+v", st)
	}
	if why := n.fails(t, "start", "apparate"); !strings.Contains(why, "is not installed") {
		t.Errorf("start of what is not installed: %s", why)
	}
	for i, want := range []bool{true, false} {
		if got := n.install(t, daemon()); got != want {
			t.Errorf("install %d: changed is %v", i, got)
		}
	}
	if st := n.status(t, "apparate"); !st.Installed || st.Running {
		t.Errorf("installed: %+v", st)
	}
	n.do(t, nil, "start", "apparate")
	n.do(t, nil, "start", "apparate")
	st := n.status(t, "apparate")
	if !st.Installed || !st.Running || !st.Ready || st.PID == 0 || st.Outdated || time.Since(st.Since) > time.Hour {
		t.Errorf("started: %+v", st)
	}
	if got := n.sh(t, "cat /var/lib/apparate/started"); got != "started for /root" {
		t.Errorf("after the start: %q", got)
	}
	if got := n.property(t, unit, "Before"); !strings.Contains(got, "containerd.service") {
		t.Errorf("it is before %s", got)
	}
	if got := n.property(t, unit, "RequiresMountsFor"); got != root {
		t.Errorf("it requires mounts for %s", got)
	}
	if got := n.property(t, unit, "Description"); got != daemon().Description {
		t.Errorf("it is described as %q", got)
	}
	if got := n.sh(t, "systemd-analyze verify "+unit+" 2>&1 || true"); strings.Contains(got, unit+":") {
		t.Errorf("systemd-analyze: %s", got)
	}
}

// disturbed ends processes in all the ways that there are, under a reader.
func disturbed(t *testing.T, n *node, r *reader) {
	t.Helper()
	connection := n.connection(t)
	kill := func(who string) func() {
		return func() { n.sh(t, "systemctl kill -s KILL --kill-who="+who+" "+unit) }
	}
	changed := daemon()
	changed.Env = append(changed.Env, "NEW=1")
	for _, c := range []struct {
		what string
		do   func()
	}{
		{"kill -9 of the main process", kill("main")},
		{"kill -9 of all processes", kill("all")},
		{"systemctl restart", func() { n.sh(t, "systemctl restart "+unit) }},
		{"restart", func() { n.do(t, nil, "restart", "apparate") }},
		{"restart as another", func() {
			if !n.install(t, changed) {
				t.Error("another one is no change")
			}
			if st := n.status(t, "apparate"); !st.Outdated {
				t.Errorf("another one is installed: %+v", st)
			}
			n.do(t, nil, "restart", "apparate")
		}},
		{"restart as before", func() {
			n.install(t, daemon())
			n.do(t, nil, "restart", "apparate")
		}},
	} {
		was := n.status(t, "apparate").PID
		c.do()
		if st := n.ready(t, was); st.Outdated {
			t.Errorf("%s: %+v", c.what, st)
		}
		if got := n.connection(t); got != connection {
			t.Fatalf("%s: the FUSE connection is %d, was %d", c.what, got, connection)
		}
		r.goesOn(t)
	}
	was, holder := n.worker(t), n.status(t, "apparate").PID
	n.do(t, nil, "reload", "apparate")
	eventually(t, "another process does the work", func() bool { return n.worker(t) != was })
	if st := n.status(t, "apparate"); st.PID != holder || n.connection(t) != connection {
		t.Errorf("after a reload: %+v, it was %d", st, holder)
	}
	n.sh(t, "systemctl reload "+unit)
	r.goesOn(t)
}

// worker is the process below the main one.
func (n *node) worker(t *testing.T) string {
	t.Helper()
	pid := strconv.Itoa(n.status(t, "apparate").PID)
	return n.sh(t, "cat /proc/"+pid+"/task/*/children")
}

// runtimes restarts containerd under a reader.
func runtimes(t *testing.T, n *node, r *reader) {
	t.Helper()
	const sock, config = "/run/containerd/containerd.sock", "/etc/containerd/config.toml"
	main := func() string { return n.property(t, "containerd.service", "MainPID") }
	was := main()
	for _, before := range []string{"true", "systemctl kill -s KILL --kill-who=main containerd", "systemctl stop containerd"} {
		n.sh(t, before)
		var how string
		if n.do(t, &how, "runtime", sock); how != "systemd unit containerd.service" {
			t.Errorf("%s: the restart is %q", before, how)
		}
		now := main()
		if now == was || now == "0" {
			t.Errorf("%s: containerd is process %s, was %s", before, now, was)
		}
		was = now
		if got := n.sh(t, "ctr task ls -q"); got != r.id {
			t.Errorf("%s: the tasks are %q", before, got)
		}
	}
	n.sh(t, "cp "+config+" /root/; echo 'version = nonsense' >"+config)
	if why := n.fails(t, "runtime", sock); !strings.Contains(why, "containerd: failed to unmarshal TOML") || !strings.Contains(why, "journalctl -u containerd.service") {
		t.Errorf("with a broken configuration: %s", why)
	}
	n.sh(t, "cp /root/config.toml "+config)
	n.do(t, nil, "runtime", sock)
	r.goesOn(t)

	// One that no unit has started is not its unit's.
	n.sh(t, "mkdir -p /root/other; printf 'version = 3\nroot = \"/root/other/root\"\nstate = \"/run/other\"\n[grpc]\naddress = \"/run/other.sock\"\n[ttrpc]\naddress = \"/run/other.ttrpc\"\n' >/root/other/config.toml")
	n.sh(t, `systemd-run --unit=session sh -c '(containerd --config /root/other/config.toml 2>/root/other/log &) ; exec sleep 3600'`)
	eventually(t, "the other one answers", func() bool {
		_, err := n.Exec(t.Context(), "ctr", "--address", "/run/other.sock", "version")
		return err == nil
	})
	var how string
	if n.do(t, &how, "runtime", "/run/other.sock"); !strings.HasPrefix(how, "SIGTERM to process ") {
		t.Errorf("the restart of one that is of no unit: %q", how)
	}
	if got := n.sh(t, "systemctl is-active session"); got != "active" {
		t.Errorf("the unit that it was in is %s", got)
	}
	n.sh(t, "ctr --address /run/other.sock version && systemctl stop session && rm -r /root/other")
}

// rebooted cuts the power and boots again.
func rebooted(t *testing.T, n *node, ref string, sums []string) {
	t.Helper()
	if err := n.PowerCut(); err != nil {
		t.Fatal(err)
	}
	if err := n.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	st := n.status(t, "apparate")
	if !st.Ready || st.Outdated {
		t.Errorf("after a boot: %+v", st)
	}
	ready, err1 := strconv.Atoi(n.property(t, unit, "ActiveEnterTimestampMonotonic"))
	containerd, err2 := strconv.Atoi(n.property(t, "containerd.service", "ExecMainStartTimestampMonotonic"))
	if err1 != nil || err2 != nil || ready == 0 || ready > containerd {
		t.Errorf("it was ready at %d, containerd started at %d (%v, %v)", ready, containerd, err1, err2)
	}
	n.sh(t, "ctr container rm first")
	r := n.read(t, ref, sums, "second")
	r.stop(t)
	n.sh(t, "ctr images rm --sync "+ref)
}

// traces are the files of units, the processes, the mounts and the groups of a service.
func (n *node) traces(t *testing.T) string {
	t.Helper()
	// What is not found is no error, and neither is what goes meanwhile; but a program
	// that is missing is.
	return n.sh(t, `for p in cat find grep systemctl; do command -v $p >/dev/null || exit 9; done
find /etc/systemd /run/systemd /sys/fs/cgroup -name '*apparate*'
systemctl list-units --all --no-legend '*apparate*'
systemctl list-unit-files --no-legend '*apparate*'
cat /proc/[0-9]*/comm 2>/dev/null | grep apparate
grep apparate /proc/self/mounts
true`)
}

// nothingLeft fails where there are other traces than before.
func (n *node) nothingLeft(t *testing.T, before string) {
	t.Helper()
	var now string
	for range 100 { // systemd sees that a mount is gone a moment later
		if now = n.traces(t); now == before {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("left is:\n%s\nbefore there was:\n%s", now, before)
}

// removed takes it away.
func removed(t *testing.T, n *node, before string) {
	t.Helper()
	n.sh(t, "systemctl stop containerd")
	n.do(t, nil, "stop", "apparate")
	if st := n.status(t, "apparate"); st.Running || !st.Installed || st.LastExit != "exit status 0" {
		t.Errorf("stopped: %+v", st)
	}
	n.do(t, nil, "start", "apparate")
	for range 2 {
		n.do(t, nil, "remove", "apparate")
	}
	if log := n.sh(t, "journalctl --no-pager --output=cat --unit="+unit); strings.Contains(log, "goroutine ") {
		t.Errorf("it has crashed: %s", log)
	}
	// Its mounts are not the manager's.
	n.do(t, nil, "clear", root)
	if left := n.mounts(t); len(left) > 0 {
		t.Errorf("mounts are left: %v", left)
	}
	n.nothingLeft(t, before)
	if st := n.status(t, "apparate"); st.Installed || st.Running || st.LastExit != "" {
		t.Errorf("removed: %+v", st)
	}
	if got, err := filepath.Glob(n.Path("/etc/systemd/system/.*")); err != nil || len(got) > 0 {
		t.Errorf("left are %v, %v", got, err)
	}
}
