package agent

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/rest"

	"github.com/apparate/apparate/snapshotter/kubeapi"
)

// TestUnwanted: when the process ends, the machine stays a node unless it is known that
// nobody wants it to. The whole of it, with a real cluster, is in test/story.
func TestUnwanted(t *testing.T) {
	const selector = `{"spec":{"template":{"spec":{"nodeSelector":{"cloud.tencent.com/apparate":"true"}}}}}`
	const labelled = `{"metadata":{"name":"n","labels":{"cloud.tencent.com/apparate":"true"}}}`
	for name, c := range map[string]struct {
		code     int
		ds, node string
		why      string // "" stays, "?" nobody knows
	}{
		"wanted":      {200, selector, labelled, ""},
		"gone":        {404, `{"kind":"Status","reason":"NotFound"}`, labelled, "is gone"},
		"no rights":   {403, `{"kind":"Status","reason":"Forbidden"}`, labelled, "rights are gone"},
		"no account":  {401, `{"kind":"Status","reason":"Unauthorized"}`, labelled, "rights are gone"},
		"deleting":    {200, `{"metadata":{"deletionTimestamp":"2026-01-01T00:00:00Z"}}`, labelled, "being deleted"},
		"other label": {200, selector, `{"metadata":{"labels":{"cloud.tencent.com/apparate":"false"}}}`, "not labelled cloud.tencent.com/apparate=true"},
		"trouble":     {400, `{"kind":"Status","message":"who knows"}`, labelled, "?"},
		"nonsense":    {200, `<html>`, labelled, "?"},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			text, code := c.node, 200
			if strings.HasSuffix(r.URL.Path, "/apis/apps/v1/namespaces/system/daemonsets/node") {
				text, code = c.ds, c.code
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(code)
			_, _ = w.Write([]byte(text)) // the client is in this process
		}))
		api, err := kubeapi.New(&rest.Config{Host: s.URL})
		if err != nil {
			t.Fatal(err)
		}
		a, err := New(Options{Node: "n", DaemonSet: "system/node", API: api})
		if err != nil {
			t.Fatal(err)
		}
		why, err := a.unwanted(t.Context())
		switch {
		case (err != nil) != (c.why == "?"):
			t.Errorf("%s: %v", name, err)
		case c.why == "" && why != "", c.why != "?" && !strings.Contains(why, c.why):
			t.Errorf("%s: %q, want %q", name, why, c.why)
		}
		s.Close()
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{{Node: "n"}, {Node: "n", DaemonSet: "name"}, {DaemonSet: "a/b"}, {Node: "n", DaemonSet: "/b"}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
}

// TestSyncFiles: the daemon's directory has what the Secret has and what is the pods',
// for root alone.
func TestSyncFiles(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "secret"), filepath.Join(t.TempDir(), "host")
	check := func(pods bool, want map[string]string) {
		t.Helper()
		if err := syncFiles(from, to, pods); err != nil {
			t.Fatal(err)
		}
		all, err := os.ReadDir(to)
		if err != nil || len(all) != len(want) {
			t.Errorf("there are %v, %v, want %v", all, err, want)
		}
		for name, text := range want {
			b, err := os.ReadFile(filepath.Join(to, name))
			if err != nil || string(b) != text {
				t.Errorf("%s: %q, %v", name, b, err)
			}
			if fi, err := os.Stat(filepath.Join(to, name)); err == nil && fi.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v", name, fi.Mode())
			}
		}
	}
	put := func(dir, name, text string) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check(true, nil)
	put(to, "pods.json", "p")
	put(from, "chart.json", "1")
	put(from, "pods.json", "not theirs")
	put(from, "README", "no JSON")
	check(true, map[string]string{"chart.json": "1", "pods.json": "p"})
	put(from, "chart.json", "2")
	put(from, "chart-1.json", "3")
	check(true, map[string]string{"chart.json": "2", "chart-1.json": "3", "pods.json": "p"})
	if err := os.Remove(filepath.Join(from, "chart-1.json")); err != nil {
		t.Fatal(err)
	}
	check(false, map[string]string{"chart.json": "2"})
	if err := os.RemoveAll(from); err != nil {
		t.Fatal(err)
	}
	check(false, nil)
}
