package service

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// full has something in every field, and in each what has to be escaped.
func full() Daemon {
	return Daemon{
		Name: "apparate", Description: "Lazy images, 100%\nof them",
		Argv:   []string{"/var/lib/apparate/bin/apparate", "snapshotter", "--root", "/a b", `$HOME "q" 'q' \n %n`, "", "tab\tand\nline", "ümlaut"},
		Env:    []string{"HTTPS_PROXY=http://u:p%40w@proxy:3128", "EMPTY=", `Q="$x\"`},
		Before: []string{"containerd.service", "k3s.service"}, After: []string{"local-fs.target"},
		Mounts: []string{"/var/lib/apparate", "/with space/50%"}, PostStart: []string{"/bin/apparate", "node", "post-start"},
		Descriptors: 3, StartTimeout: 1500 * time.Millisecond,
	}
}

func TestUnitFile(t *testing.T) {
	for file, text := range map[string]string{
		"full.service":  unitFile(full(), 252, "/bin/kill"),
		"small.service": unitFile(Daemon{Name: "small", Argv: []string{"/bin/true"}}, 256, ""),
	} {
		want, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		if text != string(want) {
			t.Errorf("%s is now:\n%s", file, text)
		}
	}
}

func TestCheck(t *testing.T) {
	if err := full().check(); err != nil {
		t.Error(err)
	}
	for want, spoil := range map[string]func(d *Daemon){
		"service name":      func(d *Daemon) { d.Name = "../x" },
		"Argv []":           func(d *Daemon) { d.Argv = nil },
		"absolute path":     func(d *Daemon) { d.Argv = []string{"sh"} },
		"Argv [\"/bin/a b":  func(d *Daemon) { d.Argv = []string{"/bin/a b"} },
		"Argv [\"/bin/../x": func(d *Daemon) { d.Argv = []string{"/bin/../x"} },
		"PostStart":         func(d *Daemon) { d.PostStart = []string{"-/bin/sh"} },
		"zero byte":         func(d *Daemon) { d.Argv = append(d.Argv, "a\x00b") },
		`variable "A B"`:    func(d *Daemon) { d.Env = []string{"A B=secret"} },
		"no name of a unit": func(d *Daemon) { d.Before = []string{"a.service b.service"} },
		"no absolute path":  func(d *Daemon) { d.Mounts = []string{"var"} },
	} {
		d := full()
		spoil(&d)
		if err := d.check(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestSystemdVersion(t *testing.T) {
	for v, want := range map[string]int{`"252.38-1~deb12u1"`: 252, `"v255"`: 255, "219": 219, `"257.7-1.fc42"`: 257} {
		if got, err := systemdVersion(v); err != nil || got != want {
			t.Errorf("%s: %d, %v, want %d", v, got, err, want)
		}
	}
	if got, err := systemdVersion(`""`); err == nil {
		t.Errorf("no version is %d", got)
	}
}
