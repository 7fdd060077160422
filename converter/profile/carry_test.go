package profile_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	api "github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/converter"
	"github.com/apparate/apparate/converter/profile"
)

// carried returns the event about the profile, if there is one.
func carried(events []converter.Event) (e converter.Event, ok bool) {
	i := slices.IndexFunc(events, func(e converter.Event) bool {
		return e.Type == converter.ProfileCarried || e.Type == converter.ProfileLost
	})
	if i < 0 {
		return converter.Event{}, false
	}
	return events[i], true
}

// When an image is converted again its profile goes with it, as far as the new image has its chunks.
func TestCarry(t *testing.T) {
	changed := file{top.name, text(6, len(top.body))}
	for name, c := range map[string]struct {
		read    []file
		next    [][]file
		rebuilt bool
		kept    []file // nil for no profile
	}{
		"a layer of little weight is another": {[]file{big, small1, top}, [][]file{{big, small1, unread, small2}, {{top.name, text(7, 100)}}}, true, []file{big, small1}},
		"nothing that is read has changed":    {[]file{big, small1}, [][]file{{big, small1, unread, small2}, {changed}}, false, []file{big, small1}},
		"little that is read has changed":     {[]file{big, small1, small2}, [][]file{{big, small1, unread}, {changed}}, false, []file{big, small1, small2}},
		"all has changed":                     {[]file{top}, [][]file{{big, small1, unread, small2}, {changed}}, false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			first, events := l.convert(theImage()...)
			if e, ok := carried(events); ok {
				t.Fatalf("the first conversion carries a profile over: %+v", e)
			}
			_, err := profile.Make(t.Context(), l.client, first, []api.Sample{sample(first, 0, c.read...)}, profile.Options{})
			if err != nil {
				t.Fatal(err)
			}
			old, _, err := profile.Find(t.Context(), l.client, first)
			if err != nil {
				t.Fatal(err)
			}
			second, events := l.convert(c.next...)
			if second == first {
				t.Fatal("the image did not change")
			}
			e, ok := carried(events)
			f, found, err := profile.Find(t.Context(), l.client, second)
			if err != nil || ok != (c.kept != nil) || found != ok {
				t.Fatalf("carried over: %v (%+v), found: %v, %v", ok, e, found, err)
			}
			if !found {
				return
			}
			if e.Type != converter.ProfileCarried || e.Digest != f.Descriptor.Digest || strings.Contains(e.Reason, "packed anew") != c.rebuilt || e.Platform == "" {
				t.Errorf("the event is %+v, the profile %s", e, f.Descriptor.Digest)
			}
			if same := f.Table.Pack == old.Table.Pack; same == c.rebuilt || f.Summary.CarriedFrom != first.DigestStr() || f.Summary.Samples != 1 {
				t.Errorf("the same pack: %v, summary %+v", same, f.Summary)
			}
			var want [][32]byte
			for _, file := range c.kept {
				want = append(want, chunks(file.body)...)
			}
			blob, err := l.client.Blob(t.Context(), second.Context(), f.Table.Pack, f.Table.Size)
			if err != nil {
				t.Fatal(err)
			}
			if got := unpack(t, f.Table, blob); !reflect.DeepEqual(got, want) {
				t.Errorf("%d chunks, want %d", len(got), len(want))
			}
			if err := blob.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// In a registry without a list of referrers it goes the same way.
func TestCarryByTag(t *testing.T) {
	l := newRealLab(t)
	first, _ := l.convert(theImage()...)
	if _, err := profile.Make(t.Context(), l.client, first, []api.Sample{sample(first, 0, big)}, profile.Options{}); err != nil {
		t.Fatal(err)
	}
	second, events := l.convert([]file{big, small1, unread, small2}, []file{{top.name, text(8, 100)}})
	if e, ok := carried(events); !ok || e.Type != converter.ProfileCarried {
		t.Fatalf("%+v", e)
	}
	if _, ok, err := profile.Find(t.Context(), l.client, second); !ok || err != nil {
		t.Fatal(ok, err)
	}
}

// A profile of its own stays.
func TestCarryKeepsOwn(t *testing.T) {
	l := newLab(t)
	first, _ := l.convert(theImage()...)
	if _, err := profile.Make(t.Context(), l.client, first, []api.Sample{sample(first, 0, big)}, profile.Options{}); err != nil {
		t.Fatal(err)
	}
	second, _ := l.convert([]file{big, small1, unread, small2}, []file{{top.name, text(9, 100)}})
	own, err := profile.Make(t.Context(), l.client, second, []api.Sample{sample(second, 0, small1)}, profile.Options{})
	if err != nil || own.Unchanged {
		t.Fatal(own, err)
	}
	if _, done, err := profile.Carry(t.Context(), l.client, first, second, profile.BuildOptions{TempDir: t.TempDir()}); done || err != nil {
		t.Errorf("carried over: %v, %v", done, err)
	}
}
