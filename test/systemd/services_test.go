package systemd

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apparate/apparate/snapshotter/service"
)

// TestServices is what services are besides the snapshotter.
func TestServices(t *testing.T) {
	for _, o := range []Options{{Release: Bookworm}, {Release: Trixie, Unified: true}, {Release: Bullseye}} {
		t.Run(o.Release, func(t *testing.T) {
			n := start(t, o)
			before := n.traces(t)
			words(t, n)
			failing(t, n)
			detached(t, n)
			overTheBus(t, n)
			readOnly(t, n)
			n.nothingLeft(t, before)
		})
	}
}

// odd has what needs to be escaped.
func odd(name string, args ...string) service.Daemon {
	return service.Daemon{
		Name: "apparate-" + name, Argv: append([]string{"/opt/inside"}, args...),
		Env:          []string{"HTTPS_PROXY=http://u:p%40w@proxy:3128", "EMPTY=", `Q="$x\"`, "SPACE= a  b "},
		Mounts:       []string{"/var/lib/apparate", "/var/with space/50%"},
		StartTimeout: 20 * time.Second, StopTimeout: 10 * time.Second,
	}
}

func words(t *testing.T, n *node) {
	t.Helper()
	args := []string{"show", "/var/shown", "/a b", `$HOME ${HOME} "q" 'q' \n %n %%`, "", "tab\tand\nline", "ümlaut", "-", ";", "@x"}
	shown := func() (is struct{ Args, Env []string }) {
		eventually(t, "it shows its arguments", func() bool {
			b, err := os.ReadFile(n.Path("/var/shown"))
			return err == nil && json.Unmarshal(b, &is) == nil
		})
		n.sh(t, "rm /var/shown")
		return is
	}
	d := odd("words", args...)
	n.install(t, d)
	n.do(t, nil, "start", d.Name)
	check := func(how string) {
		is := shown()
		if !slices.Equal(is.Args, d.Argv) {
			t.Errorf("%s: the arguments are %q, want %q", how, is.Args, d.Argv)
		}
		for _, e := range d.Env {
			if !slices.Contains(is.Env, e) {
				t.Errorf("%s: the environment is %q, want %q", how, is.Env, e)
			}
		}
	}
	check("installed")
	if st := n.status(t, d.Name); !st.Ready {
		t.Errorf("%+v", st)
	}
	if got := n.property(t, d.Name+".service", "RequiresMountsFor"); !strings.Contains(got, "/var/with space/50%") {
		t.Errorf("it requires mounts for %s", got)
	}
	n.do(t, nil, "remove", d.Name)
	n.do(t, nil, "detach", text(t, d))
	check("detached")
	n.do(t, nil, "remove", d.Name)
}

// failing starts what does not come up, and says why.
func failing(t *testing.T, n *node) {
	t.Helper()
	d := odd("fails", "fail")
	n.install(t, d)
	for range 2 {
		if why := n.fails(t, "start", d.Name); !strings.Contains(why, "exit status 1: it cannot be done; see journalctl -u apparate-fails.service") {
			t.Errorf("start of what fails: %s", why)
		}
	}
	eventually(t, "it is known how it ended", func() bool {
		st := n.status(t, d.Name)
		return !st.Ready && st.LastExit == "exit status 1"
	})
	if why := n.fails(t, "reload", d.Name); !strings.Contains(why, "SIGHUP to apparate-fails.service") {
		t.Errorf("reload of what does not run: %s", why)
	}
	n.do(t, nil, "remove", d.Name) // which systemd tries to start all the time

	d = daemon()
	d.Argv = append(d.Argv, "--metrics-address", "192.0.2.1:9")
	n.install(t, d)
	if why := n.fails(t, "start", d.Name); !strings.Contains(why, "exit status 1: apparate: --metrics-address: listen tcp 192.0.2.1:9: ") {
		t.Errorf("start of a snapshotter that cannot: %s", why)
	}
	n.do(t, nil, "remove", d.Name)
	n.do(t, nil, "clear", root) // a restart could have gone on with it

	d = odd("silent", "sleep")
	d.StartTimeout = time.Second
	n.install(t, d)
	if why := n.fails(t, "start", d.Name); !strings.Contains(why, "start of apparate-silent.service: ") {
		t.Errorf("start of what is never ready: %s", why)
	}
	n.do(t, nil, "remove", d.Name)
	if why := n.fails(t, "reload", d.Name); !strings.Contains(why, "is not installed") {
		t.Errorf("reload of what is removed: %s", why)
	}
}

// detached starts programs that are no daemons.
func detached(t *testing.T, n *node) {
	t.Helper()
	d := odd("detached", "sleep")
	var pids []int
	for range 2 {
		n.do(t, nil, "detach", text(t, d))
		pids = append(pids, n.status(t, d.Name).PID)
	}
	if pids[0] == 0 || pids[0] != pids[1] {
		t.Errorf("it is %v, want one process", pids)
	}
	n.do(t, nil, "stop", d.Name)
	if st := n.status(t, d.Name); st != (service.Status{}) {
		t.Errorf("stopped: %+v", st)
	}
	n.do(t, nil, "detach", text(t, odd("detached", "fail")))
	eventually(t, "what has failed is forgotten", func() bool { return n.status(t, d.Name) == service.Status{} })
	// One that removes itself, and what it was installed as.
	d = odd("detached", "remover", "apparate-detached", "/var/removed")
	n.do(t, nil, "detach", text(t, d))
	gone := func() {
		eventually(t, "it has removed itself", func() bool {
			_, err := os.Stat(n.Path("/var/removed"))
			return err == nil && n.status(t, d.Name) == service.Status{}
		})
		if got := n.sh(t, "cat /var/removed; rm /var/removed"); got != "" {
			t.Errorf("removing itself: %s", got)
		}
	}
	gone()
	n.install(t, d)
	n.do(t, nil, "start", d.Name)
	gone()
}

// overTheBus does without the socket of systemd itself.
func overTheBus(t *testing.T, n *node) {
	t.Helper()
	n.sh(t, "systemctl start dbus && mv /run/systemd/private /run/systemd/hidden")
	d := odd("bus", "show", "/var/shown")
	n.install(t, d)
	n.do(t, nil, "start", d.Name)
	if st := n.status(t, d.Name); !st.Ready {
		t.Errorf("%+v", st)
	}
	n.do(t, nil, "restart", d.Name)
	n.do(t, nil, "runtime", "/run/containerd/containerd.sock")
	n.do(t, nil, "remove", d.Name)
	n.sh(t, "mv /run/systemd/hidden /run/systemd/private; rm /var/shown")
}

// readOnly has a machine whose /etc cannot be written.
func readOnly(t *testing.T, n *node) {
	t.Helper()
	n.sh(t, "mount --bind /etc /etc && mount -o remount,bind,ro /etc")
	d := odd("volatile", "show", "/var/shown")
	if !n.install(t, d) || n.install(t, d) {
		t.Error("what is new is not changed, or what is not new is")
	}
	n.do(t, nil, "start", d.Name)
	if got := n.property(t, d.Name+".service", "FragmentPath"); got != "/run/systemd/system/apparate-volatile.service" {
		t.Errorf("the unit is %s", got)
	}
	n.do(t, nil, "remove", d.Name)
	n.sh(t, "umount /etc; rm /var/shown")
}
