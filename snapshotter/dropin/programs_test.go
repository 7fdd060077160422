package dropin

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/apparate/apparate/test/tools"
)

var update = flag.Bool("update", false, "write testdata/dumps with what the real programs print")

// program is a containerd of test/tools.
type program struct{ version, name string }

var programs = []program{
	{versions[0], tools.Containerd14}, {versions[1], tools.Containerd16},
	{versions[2], tools.Containerd17}, {versions[3], tools.ContainerdCRI},
}

// TestPrograms gives plans to the real containerds: what they make of the files is
// what Verify asks for, a second plan changes nothing, and Restore leads back.
func TestPrograms(t *testing.T) {
	paths, err := tools.Ensure(t.Context(), testWriter{t}, tools.Containerd14, tools.Containerd16, tools.Containerd17, tools.ContainerdCRI)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		for _, host := range hosts(p.version) {
			t.Run(p.version+"/"+host, func(t *testing.T) {
				n := node{t: t, dir: t.TempDir(), containerd: paths[p.name], version: p.version, host: host}
				n.run()
			})
		}
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// node is a host directory with a containerd that reads it.
type node struct {
	t                        *testing.T
	dir, containerd, version string
	host                     string
}

func (n *node) run() {
	t := n.t
	n.fill()
	in := input(n.version, n.dir)
	original := n.read(in.MainPath)
	before := n.dump()
	plan, in := n.plan(before)
	if !bytes.Equal(original, in.Main) {
		t.Fatal("Read returned another file")
	}
	dropIn := filepath.Join(filepath.Dir(in.Glob), "apparate.toml")
	n.write(in.MainPath, plan.Main)
	if err := Verify(n.plainDump(original), n.dump(), in); err == nil {
		t.Error("Verify is content without the drop-in")
	}
	n.write(dropIn, plan.DropIn)
	after := n.dump()
	if err := Verify(before, after, in); err != nil {
		t.Errorf("%v\n%s", err, after)
	}
	again, _ := n.plan(after)
	if !bytes.Equal(again.DropIn, plan.DropIn) || !bytes.Equal(again.Main, plan.Main) || again.Original != plan.Original {
		t.Errorf("a second plan differs:\n%s\n%s\n%q, %q", again.Main, again.DropIn, again.Original, plan.Original)
	}
	n.write(dropIn, plan.Drain)
	if err := VerifyDrain(before, n.dump(), in, plan.Original); err != nil {
		t.Error(err)
	}
	restored, err := Restore(n.read(in.MainPath), original, plan.Main, in.Glob)
	if err != nil || !bytes.Equal(restored, original) || (restored == nil) != (original == nil) {
		t.Errorf("restored %q, %v", restored, err)
	}
	n.keep(before, after, plan.DropIn)
}

// fill writes the files of the host.
func (n *node) fill() {
	switch n.host {
	case "none":
	case "generated":
		n.write(filepath.Join(n.dir, "config.toml"), n.exec("config", "default"))
	default:
		for path, data := range hostFiles(n.t, n.host, n.dir) {
			n.write(filepath.Join(n.dir, path), data)
		}
	}
}

// plan makes a plan for what is on disk.
func (n *node) plan(dump []byte) (Plan, Input) {
	n.t.Helper()
	in := input(n.version, n.dir)
	in.Dump = dump
	var err error
	if in.Main, in.Imported, err = Read(in.MainPath, n.version, in.Glob); err != nil {
		n.t.Fatal(err)
	}
	p, err := Make(in)
	if err != nil {
		n.t.Fatal(err)
	}
	return p, in
}

// plainDump is a dump with the main file main.
func (n *node) plainDump(main []byte) []byte {
	path := filepath.Join(n.dir, "config.toml")
	now := n.read(path)
	if main == nil {
		return n.exec("config", "default")
	}
	n.write(path, main)
	defer n.write(path, now)
	return n.dump()
}

func (n *node) dump() []byte {
	n.t.Helper()
	if n.read(filepath.Join(n.dir, "config.toml")) == nil {
		return n.exec("config", "default")
	}
	return n.exec("--config", filepath.Join(n.dir, "config.toml"), "config", "dump")
}

func (n *node) exec(args ...string) []byte {
	n.t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(n.t.Context()), n.containerd, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		n.t.Fatalf("containerd %s: %v\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return out
}

func (n *node) write(path string, data []byte) {
	n.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) read(path string) []byte {
	n.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		n.t.Fatal(err)
	}
	return data
}

// keep compares with testdata/dumps, or writes it.
func (n *node) keep(before, after, dropIn []byte) {
	n.t.Helper()
	if !golden[n.host] {
		return
	}
	dir := filepath.Join("testdata", "dumps", n.version, n.host)
	for name, data := range map[string][]byte{"before": before, "after": after, "dropin": dropIn} {
		data = keep(data, n.dir)
		path := filepath.Join(dir, name+".toml")
		if *update {
			n.write(path, data)
		} else if was := n.read(path); !slices.Equal(data, was) {
			n.t.Errorf("%s is not what containerd prints now: go test -run TestPrograms -update\n%s", path, data)
		}
	}
}
