package podsecrets_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/apparate/apparate/snapshotter/kubeapi"
	"github.com/apparate/apparate/snapshotter/podsecrets"
)

// oddServer is an API server with one namespace, that fails on demand.
type oddServer struct {
	mu      sync.Mutex
	pods    []string          // names; each has the secret of its name
	fail    map[string]int    // the status, by the end of a path
	asked   map[string]int    // requests, by the end of a path and "?" if from memory
	events  map[string]string // what a watch says, by version
	version int
}

func (s *oddServer) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// answer writes an answer. A client that is gone needs none.
func answer(w http.ResponseWriter, text string) { _, _ = io.WriteString(w, text) }

func oddPod(name string) string {
	return fmt.Sprintf(`{"metadata":{"namespace":"n","name":%q},"spec":{"imagePullSecrets":[{"name":%q}],"containers":[{"image":"x.test/y"}]}}`, name, name)
}

func (s *oddServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	end := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	what := end
	q := r.URL.Query()
	if q.Get("watch") != "" {
		what = "watch"
	} else if q.Get("resourceVersion") == "0" {
		what += "?"
	}
	s.asked[what]++
	switch {
	case s.fail[end] != 0:
		w.WriteHeader(s.fail[end])
	case what == "watch":
		text, ok := s.events[q.Get("resourceVersion")]
		if ok {
			answer(w, text+"\n")
			return
		}
		w.(http.Flusher).Flush()
		s.mu.Unlock()
		<-r.Context().Done()
		s.mu.Lock()
	case end == "pods":
		s.version++
		var list []string
		for _, p := range s.pods {
			list = append(list, oddPod(p))
		}
		answer(w, fmt.Sprintf(`{"metadata":{"resourceVersion":"%d"},"items":[%s]}`, s.version, strings.Join(list, ",")))
	default:
		text := base64.StdEncoding.EncodeToString([]byte(`{"auths":{"` + end + `.test":{"username":"u","password":"secret-x"}}}`))
		answer(w, fmt.Sprintf(`{"type":"kubernetes.io/dockerconfigjson","data":{".dockerconfigjson":"%s"}}`, text))
	}
}

// odd returns such a server, with a Keeper that runs.
func odd(t *testing.T, refresh time.Duration, prepare func(*oddServer, *world)) (*oddServer, *world) {
	t.Helper()
	s := &oddServer{fail: map[string]int{}, asked: map[string]int{}, events: map[string]string{}}
	server := httptest.NewServer(s)
	w := &world{dir: filepath.Join(t.TempDir(), "credentials")}
	var err error
	if w.api, err = kubeapi.New(&rest.Config{Host: server.URL}); err != nil {
		t.Fatal(err)
	}
	prepare(s, w)
	ctx, cancel := context.WithCancel(context.Background())
	k := &podsecrets.Keeper{API: w.api, Node: "n1", Dir: w.dir, Refresh: refresh, Report: w.told.report, Logger: slog.New(slog.NewTextHandler(&w.log, nil))}
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
		server.Close()
	})
	return s, w
}

func (w *world) toldLast(t *testing.T, want string) {
	t.Helper()
	for range 1000 {
		if strings.HasPrefix(w.told.last(), want) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("told %q, want %q", w.told.list, want)
}

// A server that fails for one secret says nothing of it: what was known stays, also
// what a predecessor knew, and the others are not held up.
func TestServerFails(t *testing.T) {
	s, w := odd(t, 200*time.Millisecond, func(s *oddServer, w *world) {
		s.pods, s.fail["a"] = []string{"a", "b"}, 500
		if err := os.MkdirAll(w.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(w.dir, podsecrets.File), []byte(`{"auths":{"before.test":{"username":"u","password":"p"}}}`), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	w.toldLast(t, "GET /api/v1/namespaces/n/secrets/a: 500")
	time.Sleep(500 * time.Millisecond)
	w.expect(t, "before.test u:p")
	s.set(func() { delete(s.fail, "a") })
	w.expect(t, "a.test u:secret-x", "b.test u:secret-x")
	w.toldLast(t, "<nil>")
	s.set(func() { s.fail["a"], s.asked["a?"] = 503, 0 })
	w.toldLast(t, "GET /api/v1/namespaces/n/secrets/a: 503")
	w.expect(t, "a.test u:secret-x", "b.test u:secret-x")
	s.set(func() { s.fail["a"], s.fail["b"] = 0, 404 })
	w.expect(t, "a.test u:secret-x")
	w.toldLast(t, "<nil>")
	if n := w.says(t, "name=b", "404"); n != 1 || strings.Contains(w.log.String(), "name=a") {
		t.Errorf("%d times, log:\n%s", n, &w.log)
	}
}

// A watch that is too old, broken or refused is begun anew with a list.
func TestWatchAnew(t *testing.T) {
	s, w := odd(t, time.Minute, func(s *oddServer, _ *world) {
		s.pods = []string{"a"}
		s.events["1"] = `{"type":"ADDED","object":` + strings.Replace(oddPod("b"), `"name"`, `"resourceVersion":"1.1","name"`, 1) + `}` + "\n" +
			`{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"1.2"}}}`
		s.events["1.2"] = `{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}`
		s.events["2"] = `{"type":"ADDED","object":"odd"}`
	})
	w.expect(t, "a.test u:secret-x", "b.test u:secret-x")
	w.expect(t, "a.test u:secret-x") // as the second list has it
	s.set(func() { s.pods = []string{"c"} })
	w.toldLast(t, "the pods of node n1 cannot be followed: a pod cannot be read")
	w.expect(t, "c.test u:secret-x")
	w.toldLast(t, "<nil>")
	// Nothing is asked for again and again.
	s.set(func() {
		for what, want := range map[string]int{"pods?": 3, "watch": 4, "a": 1, "a?": 0, "b": 1, "c": 1, "c?": 0} {
			if s.asked[what] != want {
				t.Errorf("asked %d times for %s, want %d", s.asked[what], what, want)
			}
		}
	})
}

// Where the file cannot be written, that is told, and it is tried again.
func TestNoDirectory(t *testing.T) {
	_, w := odd(t, 200*time.Millisecond, func(s *oddServer, w *world) {
		s.pods = []string{"a"}
		if err := os.WriteFile(w.dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	w.toldLast(t, "mkdir "+w.dir+": not a directory")
	if err := os.Remove(w.dir); err != nil {
		t.Fatal(err)
	}
	w.expect(t, "a.test u:secret-x")
	w.toldLast(t, "<nil>")
	if err := (&podsecrets.Keeper{}).Run(t.Context()); err == nil {
		t.Error("a Keeper without anything runs")
	}
}

// A start with many pods is quick, and asks for each secret once; later ones come out
// of the server's memory.
func TestManyPods(t *testing.T) {
	const most = 250
	s, w := odd(t, 3*time.Second, func(s *oddServer, _ *world) {
		for i := range most {
			s.pods = append(s.pods, fmt.Sprint("p", i))
		}
	})
	want := make([]string, 0, most)
	for i := range most {
		want = append(want, fmt.Sprintf("p%d.test u:secret-x", i))
	}
	w.expect(t, want...)
	s.set(func() {
		for i := range most {
			if name := fmt.Sprint("p", i); s.asked[name] != 1 {
				t.Errorf("asked for %s %d times", name, s.asked[name])
			}
		}
	})
	for limit := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		done := 0
		s.set(func() {
			for i := range most {
				if name := fmt.Sprint("p", i); s.asked[name] == 1 && s.asked[name+"?"] > 0 {
					done++
				}
			}
		})
		if done == most {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%d of %d were read again", done, most)
		}
	}
}
