package converter

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/converter/check"
	"github.com/apparate/apparate/converter/fault"
)

// lab is a registry in this process and a converter that talks to it.
type lab struct {
	t    *testing.T
	host string
	c    *Converter
	tmp  string
	// inner is the registry itself, for hooks.
	inner http.Handler

	mu   sync.Mutex
	log  []string // "METHOD path"
	hook func(w http.ResponseWriter, r *http.Request) bool
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, tmp: t.TempDir()}
	l.inner = ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.mu.Lock()
		l.log = append(l.log, r.Method+" "+r.URL.Path)
		hook := l.hook
		l.mu.Unlock()
		if hook == nil || !hook(w, r) {
			l.inner.ServeHTTP(w, r)
		}
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(srv.Close)
	l.host = strings.TrimPrefix(srv.URL, "http://")
	l.c = New(Options{TempDir: l.tmp, RetryWait: time.Millisecond})
	t.Cleanup(func() {
		left, err := os.ReadDir(l.tmp)
		if err != nil || len(left) != 0 {
			t.Errorf("temporary files are left: %v, %v", left, err)
		}
	})
	return l
}

func (l *lab) setHook(h func(w http.ResponseWriter, r *http.Request) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hook = h
}

// requests returns and forgets the requests so far that begin with one of the prefixes.
func (l *lab) requests(prefixes ...string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for _, r := range l.log {
		for _, p := range prefixes {
			if strings.HasPrefix(r, p) {
				out = append(out, r)
			}
		}
	}
	l.log = nil
	return out
}

func (l *lab) do(method, path, contentType string, body []byte) (int, http.Header, []byte) {
	l.t.Helper()
	req, err := http.NewRequest(method, "http://"+l.host+path, bytes.NewReader(body))
	if err != nil {
		l.t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		l.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, b
}

// blob pushes a blob and returns its descriptor.
func (l *lab) blob(repo, mediaType string, b []byte) map[string]any {
	l.t.Helper()
	d := digest.FromBytes(b).String()
	if code, _, msg := l.do("POST", "/v2/"+repo+"/blobs/uploads/?digest="+d, "application/octet-stream", b); code != http.StatusCreated {
		l.t.Fatalf("push blob: %d %s", code, msg)
	}
	return map[string]any{"mediaType": mediaType, "digest": d, "size": len(b)}
}

// put pushes a manifest under a tag and returns its descriptor.
func (l *lab) put(repo, tag, mediaType string, m any) map[string]any {
	l.t.Helper()
	raw, err := json.Marshal(m)
	if err != nil {
		l.t.Fatal(err)
	}
	if tag == "" {
		tag = digest.FromBytes(raw).String()
	}
	if code, _, msg := l.do("PUT", "/v2/"+repo+"/manifests/"+tag, mediaType, raw); code != http.StatusCreated {
		l.t.Fatalf("push manifest: %d %s", code, msg)
	}
	return map[string]any{"mediaType": mediaType, "digest": digest.FromBytes(raw).String(), "size": len(raw)}
}

// get reads a manifest; exists is false for 404.
func (l *lab) get(repo, ref string) (m map[string]any, d string, exists bool) {
	l.t.Helper()
	code, _, raw := l.do("GET", "/v2/"+repo+"/manifests/"+ref, "", nil)
	if code == http.StatusNotFound {
		return nil, "", false
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		l.t.Fatalf("%s:%s: %v: %s", repo, ref, err, raw)
	}
	return m, digest.FromBytes(raw).String(), true
}

func (l *lab) getBlob(repo, d string) []byte {
	l.t.Helper()
	code, _, b := l.do("GET", "/v2/"+repo+"/blobs/"+d, "", nil)
	if code != http.StatusOK {
		l.t.Fatalf("blob %s: %d", d, code)
	}
	return b
}

// layerOf makes a tar of a few files; seed makes it differ.
func layerOf(t *testing.T, seed string, size int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	body := bytes.Repeat([]byte(seed+" "), size/(len(seed)+1)+1)[:size]
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755},
		{Typeflag: tar.TypeReg, Name: seed + "/file", Mode: 0o4755, Uid: 7, Gid: 8, Uname: "u", Size: int64(size), ModTime: time.Unix(1600000000, 42), Format: tar.FormatPAX,
			PAXRecords: map[string]string{"SCHILY.xattr.user.x": "v\x00w"}},
		{Typeflag: tar.TypeLink, Name: seed + "/hard", Linkname: seed + "/file"},
		{Typeflag: tar.TypeSymlink, Name: seed + "/sym", Linkname: "../nowhere"},
		{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3, Mode: 0o666},
		{Typeflag: tar.TypeReg, Name: ".wh.gone"},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write(body); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gz(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zst(t *testing.T, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

// img describes an image to push. Layers are uncompressed tars.
type img struct {
	docker   bool
	arch     string
	layers   [][]byte
	compress func(*testing.T, []byte) []byte // default gzip
	types    []string                        // media types by layer, where not the usual
	extra    map[string]any                  // fields of the manifest
}

// push pushes an image and returns its descriptor, with its platform.
func (l *lab) push(repo, tag string, i img) map[string]any {
	l.t.Helper()
	manifestType, configType, lt := ociManifest, ociConfig, ociLayer+"+gzip"
	if i.docker {
		manifestType, configType, lt = dockerManifest, dockerConfig, dockerLayer+".gzip"
	}
	if i.arch == "" {
		i.arch = "amd64"
	}
	var diffIDs, layers []any
	for n, b := range i.layers {
		diffIDs = append(diffIDs, digest.FromBytes(b).String())
		blob, mt := b, lt
		switch {
		case n < len(i.types) && i.types[n] != "":
			mt = i.types[n]
		case i.compress == nil:
			blob = gz(l.t, b)
		}
		if i.compress != nil {
			blob = i.compress(l.t, b)
		}
		d := l.blob(repo, mt, blob)
		d["annotations"] = map[string]string{"my.layer": "kept", "io.github.containers.zstd-chunked.manifest-position": "stale"}
		layers = append(layers, d)
	}
	conf := map[string]any{
		"architecture": i.arch, "os": "linux", "created": "2020-01-01T00:00:00Z", "author": "<me & you>",
		"config":  map[string]any{"Env": []string{"A=b"}, "Entrypoint": []string{"/x"}, "Labels": map[string]string{"l": "v"}, "Unknown": 12345678901234567},
		"history": []any{map[string]any{"created_by": "RUN a && b"}}, "rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs, "more": 1},
		"docker_version": "19.03",
	}
	raw, err := json.Marshal(conf)
	if err != nil {
		l.t.Fatal(err)
	}
	m := map[string]any{"schemaVersion": 2, "mediaType": manifestType, "config": l.blob(repo, configType, raw), "layers": layers}
	if !i.docker {
		m["annotations"] = map[string]string{"org.opencontainers.image.title": "t"}
	}
	for k, v := range i.extra {
		m[k] = v
	}
	d := l.put(repo, tag, manifestType, m)
	d["platform"] = map[string]any{"os": "linux", "architecture": i.arch}
	return d
}

func (l *lab) convert(r Request) (Result, error) {
	r.Source = l.host + "/" + r.Source
	if r.Target != "" {
		r.Target = l.host + "/" + r.Target
	}
	return l.c.Convert(context.Background(), r)
}

func (l *lab) mustConvert(r Request) Result {
	l.t.Helper()
	res, err := l.convert(r)
	if err != nil {
		l.t.Fatalf("convert %s: %v", r.Source, err)
	}
	return res
}

// mustCheck proves that an accelerated image equals its source.
func (l *lab) mustCheck(image, source string) check.Report {
	l.t.Helper()
	o := check.Options{Image: l.host + "/" + image, RetryWait: time.Millisecond}
	if source != "" {
		o.Source = l.host + "/" + source
	}
	r, err := check.Check(context.Background(), o)
	if err != nil {
		l.t.Fatalf("check %s: %v", image, err)
	}
	for _, d := range r.Differences {
		l.t.Errorf("check %s: %v", image, d)
	}
	return r
}

func wantKind(t *testing.T, err error, k fault.Kind, part string) {
	t.Helper()
	if fault.KindOf(err) != k || !strings.Contains(err.Error(), part) {
		t.Errorf("got %v: %v; want %v with %q", fault.KindOf(err), err, k, part)
	}
	if err != nil && strings.Contains(err.Error(), "\n") {
		t.Errorf("more than one line: %q", err)
	}
}

func dig(t *testing.T, m map[string]any, path ...any) any {
	t.Helper()
	var v any = m
	for _, p := range path {
		switch k := p.(type) {
		case string:
			o, ok := v.(map[string]any)
			if !ok {
				t.Fatalf("no object at %v", path)
			}
			v = o[k]
		case int:
			a, ok := v.([]any)
			if !ok || k >= len(a) {
				t.Fatalf("no element at %v", path)
			}
			v = a[k]
		}
	}
	return v
}

func isCanceled(err error) bool { return errors.Is(err, context.Canceled) }

// tarWith is a tar of one file.
func tarWith(t *testing.T, name string, body []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(body)), Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
