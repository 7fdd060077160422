package startup

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/apparate/apparate/api/profile"
)

// TestSamplesSince: who asks for what was recorded lately does not get what was recorded
// before, whenever it began.
func TestSamplesSince(t *testing.T) {
	e := &Engine{samples: &samples{dir: t.TempDir()}}
	now := time.Now()
	for i, ended := range []time.Time{now, now.Add(-time.Hour)} {
		s := profile.Sample{Image: "r.example/app", Manifest: "sha256:1", Started: now.Add(time.Duration(i) * time.Second)}
		if err := e.samples.add(s); err != nil {
			t.Fatal(err)
		}
		names, err := e.samples.names()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(filepath.Join(e.samples.dir, names[i]), ended, ended); err != nil {
			t.Fatal(err)
		}
	}
	for text, want := range map[string]int{
		"": 2, now.Add(-time.Minute).UTC().Format(time.RFC3339Nano): 1, now.Add(-2 * time.Hour).Format(time.RFC3339): 2, now.Add(time.Hour).Format(time.RFC3339): 0, "yesterday": -1,
	} {
		w := httptest.NewRecorder()
		e.ServeSamples(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/samples?"+url.Values{"since": {text}}.Encode(), nil))
		if want < 0 {
			if w.Code != http.StatusBadRequest {
				t.Errorf("since %q: %d", text, w.Code)
			}
			continue
		}
		if list, err := profile.DecodeSamples(w.Body.Bytes()); want > 0 && (err != nil || len(list) != want) || want == 0 && w.Body.String() != "[\n]\n" {
			t.Errorf("since %q: %q, want %d: %v", text, w.Body, want, err)
		}
	}
}
