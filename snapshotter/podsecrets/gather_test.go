package podsecrets

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/apparate/apparate/snapshotter/source"
)

func readPod(t *testing.T, text string) *podObject {
	t.Helper()
	var o podObject
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		t.Fatal(err)
	}
	return &o
}

// All places where a pod names an image count, under whatever name.
func TestPodImages(t *testing.T) {
	p := readPod(t, `{"metadata":{"namespace":"n","name":"p"},"spec":{"serviceAccountName":"a","imagePullSecrets":[{"name":"s"},{}],
		"initContainers":[{"image":"nginx"}],"containers":[{"image":"registry.test:5000/team/app:v1"},{"image":"registry.test:5000/team/app@sha256:`+strings.Repeat("0", 64)+`"},{"image":"No Image"}],
		"ephemeralContainers":[{"image":"other.test/debug"}],"volumes":[{"emptyDir":{}},{"image":{"reference":"docker.io/team/data"}}]},"status":{"phase":"Running"}}`)
	got := p.pod()
	want := []image{{"docker.io", "library/nginx"}, {"registry.test:5000", "team/app"}, {"other.test", "debug"}, {"docker.io", "team/data"}}
	if !slices.Equal(got.images, want) || got.account != "a" || !slices.Equal(got.secrets, []string{"s"}) || p.over() {
		t.Errorf("%+v", got)
	}
	for _, phase := range []string{"Succeeded", "Failed"} {
		if !readPod(t, `{"status":{"phase":"`+phase+`"}}`).over() {
			t.Errorf("%s is not over", phase)
		}
	}
}

func auth(key, user string) source.Auth {
	return source.Auth{Key: key, Credential: source.Credential{User: user, Secret: "x"}}
}

func TestGather(t *testing.T) {
	app, lib := image{"registry.test", "team/app"}, image{"registry.test", "v2/lib"}
	of := map[string][]source.Auth{}
	pods := []*pod{{namespace: "b", name: "1", images: []image{app, lib}}, {namespace: "full", name: "1", images: []image{app}}, {namespace: "a", name: "1"}, {namespace: "b", name: "2", images: []image{app}}}
	for i := range 100 {
		of["full/1"] = append(of["full/1"], auth("registry.test/team/app", fmt.Sprint("full", i)))
	}
	of["b/1"] = []source.Auth{auth("registry.test", "b1"), auth("other.test", "b1")}
	of["b/2"] = []source.Auth{auth("registry.test", "b1"), auth("registry.test/team", "b2")}
	of["a/1"] = []source.Auth{auth("registry.test", "a1")}
	gathered := func() (map[string][]string, int) {
		list, left := gather(pods, func(p *pod) []source.Auth { return of[p.key()] })
		got := map[string][]string{}
		for _, a := range list {
			got[a.Key] = append(got[a.Key], a.User)
		}
		return got, left
	}
	got, left := gathered()
	for key, want := range map[string][]string{
		"registry.test": {"a1", "b1"}, "registry.test/team": {"b2"}, "other.test": {"b1"}, "registry.test/v2/v2/lib": {"b1"},
		"registry.test/team/app": {"b1", "full0", "b2", "full1"},
	} {
		if g := got[key]; !slices.Equal(g[:min(len(g), 4)], want) {
			t.Errorf("%s: %q, want %q", key, g, want)
		}
	}
	if len(got) != 5 || left != 0 {
		t.Errorf("%d keys, %d left", len(got), left)
	}
	// What is too large by far does not spoil the rest.
	large := auth("registry.test/large", "large")
	large.Secret = strings.Repeat("\xff", 1<<20)
	for i := range 20 {
		l := large
		l.User = fmt.Sprint(i)
		of["full/1"] = append(of["full/1"], l)
	}
	list, left := gather(pods, func(p *pod) []source.Auth { return of[p.key()] })
	text, err := source.MarshalAuths(list)
	if err != nil || len(text) > maxFile || left < 10 || left > 20 {
		t.Errorf("%d bytes, %d left, %v", len(text), left, err)
	}
	if all, bad, err := source.ParseAuths(text); err != nil || len(bad) > 0 || len(all) != len(list) {
		t.Errorf("%d of %d, %v, %v", len(all), len(list), bad, err)
	}
}
