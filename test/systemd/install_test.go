package systemd

import (
	"bytes"
	"os"
	"testing"
	"time"
)

// plainConfig is containerd's on a node that knows nothing of us.
const plainConfig = `version = 3

[plugins."io.containerd.cri.v1.images".registry]
  config_path = "/etc/containerd/certs.d"
`

// TestInstall makes a booted Debian a node, by hand, and takes that back.
func TestInstall(t *testing.T) {
	n := startWith(t, Options{}, plainConfig)
	n.sh(t, "mv "+program+" /root/setup && rmdir /var/lib/apparate/bin /var/lib/apparate")
	was := n.everything(t)
	containerd := n.property(t, "containerd.service", "MainPID")
	out := n.sh(t, "/root/setup node install --background-fetch-delay -1s 2>&1")
	if now := n.property(t, "containerd.service", "MainPID"); now == containerd {
		t.Errorf("containerd was not restarted: %s", out)
	}
	if got := n.sh(t, "systemctl is-enabled "+unit+" && systemctl is-active "+unit+" containerd"); got != "enabled\nactive\nactive" {
		t.Errorf("the units are %s", got)
	}
	ref, sums := n.push(t)
	n.sh(t, "ctr images pull --hosts-dir /etc/containerd/certs.d --snapshotter apparate "+ref)
	r := n.read(t, ref, sums, "first")
	connection := n.installed(t)
	n.sh(t, "systemctl restart "+unit)
	if now := n.installed(t); now != connection {
		t.Errorf("the FUSE connection is %s, was %s", now, connection)
	}
	r.goesOn(t)
	n.sh(t, "systemctl restart containerd")
	r.goesOn(t)

	if err := n.PowerCut(); err != nil {
		t.Fatal(err)
	}
	if err := n.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.sh(t, "ctr container rm first")
	r = n.read(t, ref, sums, "second")
	if kind := n.installed(t); kind == "" {
		t.Error("after a boot nothing is mounted")
	}

	// While a container reads, it goes on, and everything waits for it.
	var said bytes.Buffer
	uninstall := n.Command(t.Context(), "/root/setup", "node", "uninstall")
	uninstall.Stdout, uninstall.Stderr = &said, &said
	if err := uninstall.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "containerd's configuration is as before", func() bool {
		b, err := os.ReadFile(n.Path("/etc/containerd/config.toml"))
		return err == nil && string(b) == plainConfig
	})
	for range 3 {
		r.goesOn(t)
		time.Sleep(time.Second)
	}
	n.installed(t)
	r.stop(t)
	if err := uninstall.Wait(); err != nil {
		t.Fatalf("node uninstall: %v: %s", err, &said)
	}
	n.sh(t, "ctr images rm --sync "+ref+"; rm -f /var/log/first.log /var/log/second.log")
	var now string
	for range 100 {
		if now = n.everything(t); now == was {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("it is now:\n%s\nand was:\n%s", now, was)
}

// installed is the FUSE connection of the snapshotter that runs.
func (n *node) installed(t *testing.T) string {
	t.Helper()
	return n.sh(t, "grep fuse.apparate /proc/self/mountinfo | cut -d' ' -f3")
}

// everything is what an installation could leave: units, processes, mounts, groups,
// files, and the content of those in /etc.
func (n *node) everything(t *testing.T) string {
	t.Helper()
	return n.traces(t) + n.sh(t, `for p in find sha256sum sort; do command -v $p >/dev/null || exit 9; done
find / -xdev -path /proc -prune -o -name '*apparate*' -print
find /run -name '*apparate*'
find /etc -type f -exec sha256sum {} + | sort -k 2
ls -l --time-style=full-iso /etc/containerd`)
}
