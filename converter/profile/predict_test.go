package profile_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	api "github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/converter"
	"github.com/apparate/apparate/converter/encode"
	"github.com/apparate/apparate/converter/profile"
)

const python = "usr/lib/python3.11/"

// program is an image with a program in Python in two layers, of which the upper one
// takes a module of the lower one away and replaces another.
func program(version string) [][]file {
	return [][]file{
		{
			{"usr/bin/python3.11", append([]byte("\x7fELF"), text(1, 300<<10)...)}, {python + "encodings/__init__.py", text(2, 300)},
			{python + "json.py", []byte("import decoder\n")}, {python + "decoder.py", text(3, 40<<10)}, {python + "unused.py", text(4, 5000)},
			{"app/gone.py", text(5, 100)}, {"app/helper.py", []byte("import unused\n")}, {"etc/passwd", []byte("root:x:0:0\n")},
		},
		{
			{"app/main.py", []byte("# " + version + "\nimport json, gone, helper\n")}, {"app/.wh.gone.py", nil}, {"app/helper.py", []byte("import os\n")},
			{"data/large", text(6, 1<<20)},
		},
	}
}

func ofType(events []converter.Event, t converter.EventType) (found []converter.Event) {
	for _, e := range events {
		if e.Type == t {
			found = append(found, e)
		}
	}
	return found
}

// names are the files that the profile of an image is of, in order.
func (l *lab) names(ref name.Digest) (names []string, s api.Summary) {
	l.t.Helper()
	found, ok, err := profile.Find(l.t.Context(), l.client, ref)
	if err != nil || !ok {
		l.t.Fatalf("profile: %v, %v", ok, err)
	}
	im, err := profile.Load(l.t.Context(), l.client, ref)
	if err != nil {
		l.t.Fatal(err)
	}
	places, err := im.Resolve(l.t.Context(), found.Table)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, p := range places {
		if !slices.Contains(names, p.Name) {
			names = append(names, p.Name)
		}
	}
	return names, found.Summary
}

// TestPredict: a new image has a profile of what it will read, until somebody has started it.
func TestPredict(t *testing.T) {
	for _, format := range []encode.Format{"", encode.ZstdChunked} {
		t.Run(string(format), func(t *testing.T) {
			l := newLab(t)
			l.format, l.start = format, []string{"python3.11", "/app/main.py"}
			ref, events := l.convert(program("one")...)
			if n := len(ofType(events, converter.ProfilePredicted)); n != 1 {
				t.Fatalf("%d profiles were predicted: %+v", n, events)
			}
			want := []string{"etc/passwd", "usr/bin/python3.11", python + "encodings/__init__.py", "app/main.py", python + "json.py", "app/helper.py", python + "decoder.py"}
			names, s := l.names(ref)
			if !slices.Equal(names, want) {
				t.Errorf("it is of %q, want %q", names, want)
			}
			if !s.Predicted || s.Samples != 0 || s.PackBytes <= 0 {
				t.Errorf("summary %+v", s)
			}
			if _, done, err := profile.Predict(t.Context(), l.client, ref, profile.BuildOptions{}); done || err != nil {
				t.Errorf("predicted again: %v, %v", done, err)
			}

			// The next version is predicted anew, and a start replaces that.
			next, events := l.convert(program("two")...)
			if len(ofType(events, converter.ProfilePredicted)) != 1 || len(ofType(events, converter.ProfileCarried)) != 0 {
				t.Errorf("the next version: %+v", events)
			}
			unused := program("two")[0][4]
			if _, err := profile.Make(t.Context(), l.client, next, []api.Sample{sample(next, time.Minute, unused)}, profile.Options{}); err != nil {
				t.Fatal(err)
			}
			if names, s := l.names(next); s.Predicted || !slices.Equal(names, []string{python + "unused.py"}) {
				t.Errorf("after a start: %q, %+v", names, s)
			}

			// What starts gave is carried over, and not predicted.
			_, events = l.convert(program("three")...)
			if len(ofType(events, converter.ProfilePredicted)) != 0 || len(ofType(events, converter.ProfileCarried)) != 1 {
				t.Errorf("the third version: %+v", events)
			}
		})
	}
}
