package converter

import (
	"net/http"
	"strings"
	"testing"
)

// A profile that cannot be carried over is told of, and fails nothing.
func TestProfileLost(t *testing.T) {
	l := newLab(t)
	l.push("app", "v1", img{layers: [][]byte{layerOf(t, "one", 1000)}})
	l.mustConvert(Request{Source: "app:v1"})
	l.push("app", "v1", img{layers: [][]byte{layerOf(t, "two", 1000)}})
	l.setHook(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/referrers/") {
			return false
		}
		w.WriteHeader(http.StatusInternalServerError)
		return true
	})
	var lost []Event
	r := l.mustConvert(Request{Source: "app:v1", Progress: func(e Event) {
		if e.Type == ProfileLost {
			lost = append(lost, e)
		}
	}})
	if len(lost) != 1 || lost[0].Error == "" || lost[0].Digest != r.TargetDigest || r.Profiles != 0 {
		t.Errorf("events %+v, result %+v", lost, r)
	}
	if _, d, ok := l.get("app", "v1-apparate"); !ok || d != r.TargetDigest {
		t.Errorf("the tag names %s, want %s", d, r.TargetDigest)
	}
}
