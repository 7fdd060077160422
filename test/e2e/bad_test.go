package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/apparate/apparate/snapshotter/mount"
	"github.com/apparate/apparate/test/node"
	"github.com/apparate/apparate/test/registry"
)

// place is where a program runs that is to fail: with directories of its own for
// temporary files and credentials, so that whatever it leaves is seen.
type place struct {
	dir, tmp, home string
	// within runs the program under another one, such as unshare.
	within []string
}

func newPlace(t *testing.T) *place {
	t.Helper()
	dir := t.TempDir()
	p := &place{dir: dir, tmp: filepath.Join(dir, "tmp"), home: filepath.Join(dir, "home")}
	for _, d := range []string{p.tmp, p.home, p.mnt()} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { p.sweep(t) })
	return p
}

// mnt is an empty directory to mount at.
func (p *place) mnt() string { return filepath.Join(p.dir, "mnt") }

// sweep makes sure that nothing is left of what ran here, and takes it away if
// it is, so that the next test can run.
func (p *place) sweep(t *testing.T) {
	t.Helper()
	left, err := node.Left(p.dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	files, err := os.ReadDir(p.tmp)
	if err != nil || len(files) > 0 {
		t.Errorf("left in the directory for temporary files: %v %v", files, err)
	}
	points, err := mount.Below(p.dir)
	if err != nil {
		t.Error(err)
	}
	for _, m := range points {
		if err := mount.Detach(m); err != nil {
			t.Error(err)
		}
	}
}

// command is the built program, ready to be started.
func (p *place) command(ctx context.Context, args ...string) *exec.Cmd {
	argv := append(append([]string{}, p.within...), commands[apparate])
	argv = append(argv, args...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "TMPDIR="+p.tmp, "HOME="+p.home, "DOCKER_CONFIG="+p.home)
	// Asked to end, it takes its mounts away; killed, it could not.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	return cmd
}

// outcome is what a program left to see.
type outcome struct {
	code        int
	out, errOut string
	peak        int64 // resident memory, bytes
}

// run runs the program to its end.
func (p *place) run(t *testing.T, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := p.command(ctx, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended, peak := make(chan struct{}), make(chan int64)
	go func() { peak <- watchMemory(cmd.Process.Pid, ended) }()
	err := cmd.Wait()
	close(ended)
	most := <-peak
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("apparate %s: %v %v\n%s", strings.Join(args, " "), err, ctx.Err(), errOut.String())
	}
	o := result(cmd, out.String(), errOut.String())
	o.peak = most
	return o
}

// watchMemory returns the most resident memory, in bytes, that a process had
// until ended. The kernel's own account at its end (ru_maxrss) will not do: it
// begins with the memory of the process that started it, which is this test.
func watchMemory(pid int, ended <-chan struct{}) (peak int64) {
	for {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err == nil {
			for line := range strings.Lines(string(b)) {
				var kib int64
				if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
					peak = max(peak, kib<<10)
				}
			}
		}
		select {
		case <-ended:
			return peak
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func result(cmd *exec.Cmd, out, errOut string) outcome {
	return outcome{code: cmd.ProcessState.ExitCode(), out: out, errOut: errOut}
}

// refused checks that the program failed with one line that has all words.
func (o outcome) refused(t *testing.T, words ...string) {
	t.Helper()
	if o.code <= 0 {
		t.Errorf("exit code %d, stdout: %s", o.code, o.out)
	}
	oneLine(t, o.errOut, words...)
}

// oneLine checks that text is one line of the program's that has all words.
func oneLine(t *testing.T, text string, words ...string) {
	t.Helper()
	if strings.Count(text, "\n") != 1 || !strings.HasPrefix(text, "apparate: ") {
		t.Errorf("want one line that begins with the program's name, got:\n%s", text)
	}
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("the line lacks %q: %s", w, text)
		}
	}
	t.Log(strings.TrimSpace(text)) // for those who improve the wording
}

// withoutLog drops the lines of the log.
func withoutLog(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "time=") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// login lets the program use a user name and password.
func (p *place) login(t *testing.T, host, user, password string) {
	t.Helper()
	secret := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	config := `{"auths":{"` + host + `":{"auth":"` + secret + `"}}}`
	if err := os.WriteFile(filepath.Join(p.home, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
}

// push pushes an image and returns its name.
func push(t *testing.T, reg *registry.Registry, repo string, img v1.Image, opts ...remote.Option) string {
	t.Helper()
	ref := reg.Host() + "/" + repo
	tag, err := name.ParseReference(ref)
	if err == nil {
		err = remote.Write(tag, img, opts...)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// read reads an image back.
func read(t *testing.T, ref string) v1.Image {
	t.Helper()
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(r)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// randomBytes are always the same.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b) // never fails
	return b
}

// tags are all tags of a registry, and what they name.
func tags(t *testing.T, reg *registry.Registry, opts ...remote.Option) map[string]string {
	t.Helper()
	all := map[string]string{}
	host, err := name.NewRegistry(reg.Host())
	if err != nil {
		t.Fatal(err)
	}
	repos, err := remote.Catalog(t.Context(), host, opts...)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range repos {
		list, err := remote.List(host.Repo(r), opts...)
		if err != nil {
			t.Fatal(err)
		}
		for _, tag := range list {
			d, err := remote.Head(host.Repo(r).Tag(tag), opts...)
			if err != nil {
				t.Fatal(err)
			}
			all[r+":"+tag] = d.Digest.String()
		}
	}
	return all
}

// unmoved checks that do moves no tag of reg.
func unmoved(t *testing.T, reg *registry.Registry, do func(), opts ...remote.Option) {
	t.Helper()
	before := tags(t, reg, opts...)
	do()
	if after := tags(t, reg, opts...); !maps.Equal(before, after) {
		t.Errorf("tags were %v and are %v", before, after)
	}
}

// proxy stands before a registry; wrong answers what is to go wrong, and says
// whether it did.
func proxy(t *testing.T, reg *registry.Registry, wrong func(http.ResponseWriter, *http.Request) bool, edit func(*http.Response) error) (host string) {
	t.Helper()
	to, err := url.Parse(reg.URL())
	if err != nil {
		t.Fatal(err)
	}
	rev := &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(to); r.Out.Host = r.In.Host },
		ModifyResponse: edit,
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if wrong == nil || !wrong(w, r) {
			rev.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// nobody is an address on which nobody listens.
func nobody(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	return s.Listener.Addr().String()
}
