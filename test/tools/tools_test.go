package tools

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestEnsure proves that every program runs and is the pinned version.
func TestEnsure(t *testing.T) {
	paths, err := Ensure(t.Context(), t.Output(), append(All(), Nft, CNI, Helm, Containerd17, Containerd16, Containerd14, MkfsErofs, Igzip, Unpigz)...)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		Containerd: "v2.", Shim: "v2.", Ctr: "v2.", Runc: "runc version", Nft: "nftables v", CNI: "v1.9.1", Helm: "v4.3.1",
		Containerd17: " v1.7.35", Containerd16: " 1.6.20~ds1", Containerd14: " 1.4.13~ds1",
		MkfsErofs: "mkfs.erofs (erofs-utils) 1.8.", Igzip: "igzip", Unpigz: "pigz 2.",
	} {
		flag := "--version"
		switch name {
		case Shim:
			flag = "-v"
		case Helm:
			flag = "version"
		}
		out, err := exec.CommandContext(t.Context(), paths[name], flag).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s %s: %v\n%s", name, flag, err, out)
		}
	}
	for _, name := range []string{Containerd17, Containerd16, Containerd14} {
		for _, beside := range []string{Containerd, Shim, Ctr} {
			if !exists(filepath.Join(filepath.Dir(paths[name]), beside)) {
				t.Errorf("%s has no %s beside it", name, beside)
			}
		}
	}
	if _, err := Ensure(t.Context(), t.Output(), "nothing"); err == nil {
		t.Error("an unknown program is found")
	}
}

// TestMake proves that of many callers one fills the directory, and that a
// failed one leaves nothing.
func TestMake(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made")
	failure := errors.New("on purpose")
	if err := Make(dir, func(string) error { return failure }); !errors.Is(err, failure) {
		t.Errorf("a failed fill returns %v", err)
	}
	if exists(dir) || exists(dir+".partial") {
		t.Error("a failed fill leaves its directory")
	}
	var fills atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := Make(dir, func(tmp string) error {
				fills.Add(1)
				return os.WriteFile(filepath.Join(tmp, "f"), nil, 0o644)
			}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if fills.Load() != 1 || !exists(filepath.Join(dir, "f")) {
		t.Errorf("%d callers filled the directory", fills.Load())
	}
}

// TestReport proves that compiler errors survive among progress lines.
func TestReport(t *testing.T) {
	var out strings.Builder
	got := report(&out, "x", time.Now().Add(-time.Hour), strings.NewReader("go: downloading a v1\nstrings\n# x/y\nf.go:1:2: undefined: z\n"))
	if len(got) != 2 || !strings.Contains(got[1], "undefined") {
		t.Errorf("messages: %q", got)
	}
	if !strings.Contains(out.String(), "1 modules downloaded") {
		t.Errorf("progress: %q", out.String())
	}
}

// TestBuildCancelled proves that a cancelled build ends.
func TestBuildCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := GoBuild(ctx, t.Output(), "x", t.TempDir(), "x", "."); err == nil {
		t.Error("a cancelled build succeeds")
	}
}
