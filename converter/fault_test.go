package converter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/converter/fault"
)

func digestOf(b []byte) string { return digest.FromBytes(b).String() }

func TestRegistriesThatAreNone(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, "<html>hello") // the client may be gone
	}))
	t.Cleanup(web.Close)
	lost := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(lost.Close)
	down, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := down.Close(); err != nil {
		t.Fatal(err)
	}
	c := New(Options{TempDir: t.TempDir(), RetryWait: time.Millisecond})
	for name, w := range map[string]struct {
		host string
		kind fault.Kind
		part string
	}{
		"web pages":      {strings.TrimPrefix(web.URL, "http://"), fault.NotRegistry, "no OCI registry"},
		"404 everywhere": {strings.TrimPrefix(lost.URL, "http://"), fault.NotRegistry, "no OCI registry"},
		"nobody listens": {down.Addr().String(), fault.Unreachable, "cannot be reached"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.Convert(context.Background(), Request{Source: w.host + "/app:v1"})
			wantKind(t, err, w.kind, w.part)
		})
	}
}

// deny answers 403 to what f says.
func deny(code int, f func(r *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !f(r) {
			return false
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, `{"errors":[{"code":"DENIED","message":"no\nway"}]}`) // the client may be gone
		return true
	}
}

func TestRights(t *testing.T) {
	l := newLab(t)
	l.push("app", "v1", img{layers: [][]byte{layerOf(t, "a", 1000)}})
	l.setHook(deny(http.StatusForbidden, func(r *http.Request) bool { return r.Method == http.MethodPost }))
	l.requests("")
	_, err := l.convert(Request{Source: "app:v1"})
	wantKind(t, err, fault.PushDenied, "docker login")
	if got := l.requests("GET /v2/app/blobs/"); len(got) > 1 {
		t.Errorf("layers were fetched before the right to push was looked at: %v", got)
	}
	l.setHook(deny(http.StatusUnauthorized, func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }))
	_, err = l.convert(Request{Source: "app:v1"})
	wantKind(t, err, fault.PullDenied, "docker login")
}

func TestDamagedBlobs(t *testing.T) {
	l := newLab(t)
	l.push("app", "v1", img{layers: [][]byte{layerOf(t, "a", 300<<10)}})
	m, _, _ := l.get("app", "v1")
	layer := dig(t, m, "layers", 0, "digest").(string)
	blob := l.getBlob("app", layer)
	var times atomic.Int32
	answer := func(n int32, body []byte, length int) {
		times.Store(0)
		l.setHook(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, layer) || times.Add(1) > n {
				return false
			}
			if length > 0 {
				w.Header().Set("Content-Length", "")
			}
			_, _ = w.Write(body) // the client may be gone
			return true
		})
	}
	for i := range blob {
		if i%97 != 0 && i > 12 {
			continue
		}
		flipped := append([]byte(nil), blob...)
		flipped[i] ^= 0x10
		answer(1000, flipped, 0)
		_, err := l.convert(Request{Source: "app:v1"})
		wantKind(t, err, fault.LayerCorrupt, layer)
	}
	answer(1000, blob[:len(blob)/2], 0)
	_, err := l.convert(Request{Source: "app:v1"})
	wantKind(t, err, fault.Unreachable, "broke off")
	if _, _, ok := l.get("app", "v1-apparate"); ok {
		t.Fatal("a tag was put")
	}
	// Once damaged, once cut off, and then right.
	answer(2, blob[:len(blob)/3], 0)
	var retried int
	if res, err := l.convert(Request{Source: "app:v1", Progress: func(e Event) {
		if e.Type == LayerRetried {
			retried++
		}
	}}); err != nil || res.Converted != 1 || retried != 2 {
		t.Errorf("%+v, %v, %d retries", res, err, retried)
	}
	l.setHook(nil)
	l.mustCheck("app:v1-apparate", "")
}

func TestBrokenSources(t *testing.T) {
	l := newLab(t)
	good := layerOf(t, "a", 1000)
	confOf := func(ids ...string) []byte {
		b, err := json.Marshal(map[string]any{"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers", "diff_ids": ids}})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, c := range map[string]struct {
		layer, conf []byte
		kind        fault.Kind
		part        string
	}{
		"cut gzip":       {gz(t, good)[:200], confOf(digestOf(good)), fault.LayerCorrupt, "though its digest is right"},
		"cut tar":        {gz(t, good[:700]), confOf(digestOf(good[:700])), fault.LayerCorrupt, "though its digest is right"},
		"no tar":         {gz(t, []byte(strings.Repeat("no tar ", 300))), confOf(digestOf(good)), fault.LayerCorrupt, "though its digest is right"},
		"other diff_id":  {gz(t, good), confOf(digestOf([]byte("x"))), fault.LayerCorrupt, "config wants"},
		"too few":        {gz(t, good), confOf(), fault.ImageInvalid, "speaks of 0"},
		"no JSON config": {gz(t, good), []byte("no"), fault.ImageInvalid, "config"},
	} {
		t.Run(name, func(t *testing.T) {
			l.put("broken", "v1", ociManifest, map[string]any{"schemaVersion": 2, "mediaType": ociManifest,
				"config": l.blob("broken", ociConfig, c.conf), "layers": []any{l.blob("broken", ociLayer+"+gzip", c.layer)}})
			_, err := l.convert(Request{Source: "broken:v1"})
			wantKind(t, err, c.kind, c.part)
			if fault.Temporary(err) {
				t.Error("trying again cannot help")
			}
		})
	}
	missing := l.blob("broken", ociLayer+"+gzip", gz(t, good))
	missing["digest"] = "sha256:" + strings.Repeat("1", 64)
	l.setHook(nil)
	code, _, _ := l.do("PUT", "/v2/broken/manifests/v2", ociManifest, mustJSON(t, map[string]any{"schemaVersion": 2, "mediaType": ociManifest,
		"config": l.blob("broken", ociConfig, confOf(digestOf(good))), "layers": []any{missing}}))
	if code == http.StatusCreated {
		_, err := l.convert(Request{Source: "broken:v2"})
		wantKind(t, err, fault.ContentMissing, "does not have")
	}
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestBusyRegistry: a registry that fails now and then is asked again.
func TestBusyRegistry(t *testing.T) {
	l := newLab(t)
	l.push("app", "v1", img{layers: [][]byte{layerOf(t, "a", 1000)}})
	var n atomic.Int32
	l.setHook(func(w http.ResponseWriter, _ *http.Request) bool {
		switch n.Add(1) % 4 {
		case 1:
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		case 3:
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		return false
	})
	l.mustConvert(Request{Source: "app:v1"})
	l.setHook(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusBadGateway)
		return true
	})
	_, err := l.convert(Request{Source: "app:v1"})
	wantKind(t, err, fault.RegistryError, "Bad Gateway")
	if !fault.Temporary(err) {
		t.Error("not temporary")
	}
}

// TestLostBlob: a registry that takes a blob and loses it must not get the tag.
func TestLostBlob(t *testing.T) {
	l := newLab(t)
	l.push("app", "v1", img{layers: [][]byte{layerOf(t, "a", 1000)}})
	var committed atomic.Bool
	l.setHook(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/sha256:") {
			committed.Store(true)
		}
		if committed.Load() && r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/blobs/") {
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		return false
	})
	_, err := l.convert(Request{Source: "app:v1"})
	wantKind(t, err, fault.ContentMissing, "does not have it")
	l.setHook(nil)
	if _, _, ok := l.get("app", "v1-apparate"); ok {
		t.Error("the tag was put all the same")
	}
}

// TestEveryRequestFails lets request i fail for good, for every i, until a run
// succeeds: each time there is a clear error, and no tag.
func TestEveryRequestFails(t *testing.T) {
	l := newLab(t)
	l.index(ociIndex)
	for i := int32(1); ; i++ {
		tag := fmt.Sprintf("fast-%d", i)
		var n atomic.Int32
		l.setHook(func(w http.ResponseWriter, _ *http.Request) bool {
			if n.Add(1) != i {
				return false
			}
			w.WriteHeader(http.StatusTeapot) // nothing that is tried again
			return true
		})
		_, err := l.convert(Request{Source: "app:v1", Target: "to:" + tag})
		l.setHook(nil)
		_, _, tagged := l.get("to", tag)
		if err == nil {
			if !tagged {
				t.Fatalf("request %d: no error and no tag", i)
			}
			if n.Load() < i {
				t.Logf("%d requests", n.Load())
				l.mustCheck("to:"+tag, "app:v1")
				return
			}
			continue // an answer that is not needed
		}
		if tagged {
			t.Fatalf("request %d: %v, and a tag", i, err)
		}
		if k := fault.KindOf(err); k == fault.Internal || k == "" {
			t.Errorf("request %d: no kind: %v", i, err)
		}
		if i > 500 {
			t.Fatal("no end")
		}
	}
}

// TestFullDisk converts in a file system that is too small.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts a tmpfs: run it as root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatalf("mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	l := newLab(t)
	big := make([]byte, 1<<20)
	seed := []byte("x")
	for i := range big { // nothing that compresses
		if i%32 == 0 {
			seed = []byte(digest.FromBytes(seed).Encoded())
		}
		big[i] = seed[i%32] ^ byte(i*i>>3)
	}
	l.push("app", "v1", img{layers: [][]byte{layerOf(t, string(big[:1]), 100)}})
	layer := tarWith(t, "big", big)
	l.push("app", "v1", img{layers: [][]byte{layer}})
	l.c = New(Options{TempDir: dir, RetryWait: time.Millisecond})
	_, err := l.convert(Request{Source: "app:v1"})
	wantKind(t, err, fault.DiskFull, "--temp-dir")
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("the cause is lost: %v", err)
	}
	l.c = New(Options{TempDir: dir + "/nowhere", RetryWait: time.Millisecond})
	_, err = l.convert(Request{Source: "app:v1"})
	wantKind(t, err, fault.Internal, "--temp-dir")
}

// TestKillLeavesNothing kills a converting process and looks for files.
func TestKillLeavesNothing(t *testing.T) {
	if dir := os.Getenv("APPARATE_TEST_KILLED"); dir != "" {
		c := New(Options{TempDir: dir})
		_, err := c.Convert(context.Background(), Request{Source: os.Getenv("APPARATE_TEST_SOURCE")})
		t.Fatalf("not killed in time: %v", err)
	}
	l := newLab(t)
	l.push("app", "v1", img{layers: [][]byte{layerOf(t, "a", 3<<20)}})
	started := make(chan struct{}, 1)
	l.setHook(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPatch {
			return false
		}
		_, _ = io.Copy(io.Discard, r.Body) // or the server does not notice the end
		started <- struct{}{}              // the converted layer is on the disk now
		<-r.Context().Done()
		return true
	})
	cmd := exec.Command(os.Args[0], "-test.run=^TestKillLeavesNothing$")
	cmd.Env = append(os.Environ(), "APPARATE_TEST_KILLED="+l.tmp, "APPARATE_TEST_SOURCE="+l.host+"/app:v1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-started
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it ended before it was killed")
	}
	l.setHook(nil)
	if _, _, ok := l.get("app", "v1-apparate"); ok {
		t.Error("there is a tag")
	}
	// newLab's cleanup looks at the directory.
}
