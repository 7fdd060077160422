package podsecrets_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apparate/apparate/snapshotter/fetch"
	"github.com/apparate/apparate/snapshotter/fetch/fetchtest"
	"github.com/apparate/apparate/snapshotter/kubeapi"
	"github.com/apparate/apparate/snapshotter/podsecrets"
	"github.com/apparate/apparate/snapshotter/source"
	"github.com/apparate/apparate/test/kube"
	"github.com/apparate/apparate/test/registry"
)

// leastPrivilege is all that a Keeper may do.
const leastPrivilege = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: pod-credentials}
rules:
- {apiGroups: [""], resources: [pods], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [serviceaccounts, secrets], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: pod-credentials}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: pod-credentials}
subjects: [{kind: User, name: keeper, apiGroup: rbac.authorization.k8s.io}]
`

// world is a cluster, and a Keeper of the node n1.
type world struct {
	*kube.Cluster
	api  *kubeapi.Client
	dir  string
	log  syncBuffer
	told troubles
	stop func()
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// troubles are what was reported.
type troubles struct {
	mu   sync.Mutex
	list []string
}

func (r *troubles) report(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, fmt.Sprint(err))
}

func (r *troubles) last() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) == 0 {
		return ""
	}
	return r.list[len(r.list)-1]
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Cluster: kube.Start(t, kube.Options{}), dir: filepath.Join(t.TempDir(), "credentials")}
	cfg, _, err := w.User("keeper")
	if err != nil {
		t.Fatal(err)
	}
	if w.api, err = kubeapi.New(cfg); err != nil {
		t.Fatal(err)
	}
	w.apply(t, leastPrivilege)
	return w
}

// run starts the Keeper; stop ends it.
func (w *world) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	k := &podsecrets.Keeper{
		API: w.api, Node: "n1", Dir: w.dir, Refresh: 500 * time.Millisecond, Report: w.told.report,
		Logger: slog.New(slog.NewTextHandler(&w.log, nil)),
	}
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
	})
	t.Cleanup(w.stop)
}

func (w *world) apply(t *testing.T, manifests ...string) {
	t.Helper()
	if _, stderr, err := w.Kubectl(t.Context(), strings.Join(manifests, "\n---\n"), "apply", "-f", "-"); err != nil {
		t.Fatal(stderr)
	}
}

func (w *world) kubectl(t *testing.T, args ...string) {
	t.Helper()
	if _, stderr, err := w.Kubectl(t.Context(), "", args...); err != nil {
		t.Fatal(stderr)
	}
}

// file is what the snapshotter finds: "key user:password", sorted; nil without a file.
func (w *world) file(t *testing.T) []string {
	t.Helper()
	path := filepath.Join(w.dir, podsecrets.File)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	auths, bad, err := source.ParseAuths(text)
	if err != nil || len(bad) > 0 {
		t.Fatal(bad, err)
	}
	for p, want := range map[string]fs.FileMode{path: 0o600, w.dir: fs.ModeDir | 0o700} {
		if st, err := os.Stat(p); err == nil && st.Mode() != want {
			t.Errorf("%s has mode %v", p, st.Mode())
		}
	}
	list := make([]string, 0, len(auths))
	for _, a := range auths {
		list = append(list, a.Key+" "+a.User+":"+a.Secret)
	}
	slices.Sort(list)
	return list
}

// expect waits for the file's content.
func (w *world) expect(t *testing.T, want ...string) {
	t.Helper()
	slices.Sort(want)
	var got []string
	for range 1000 {
		if got = w.file(t); slices.Equal(got, want) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("the file has %q, want %q; log:\n%s", got, want, &w.log)
}

// says waits for words in the log and returns how often they are there.
func (w *world) says(t *testing.T, words ...string) int {
	t.Helper()
	for range 1000 {
		n := 0
		for _, line := range strings.Split(w.log.String(), "\n") {
			if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
				n++
			}
		}
		if n > 0 {
			return n
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%q is not logged:\n%s", words, &w.log)
	return 0
}

func secret(ns, name, kind, key, content string) string {
	return fmt.Sprintf("{apiVersion: v1, kind: Secret, metadata: {namespace: %s, name: %s}, type: %s, data: {%s: %s}}",
		ns, name, kind, key, base64.StdEncoding.EncodeToString([]byte(content)))
}

func pullSecret(ns, name, key, user, password string) string {
	return secret(ns, name, "kubernetes.io/dockerconfigjson", ".dockerconfigjson", fmt.Sprintf(`{"auths":{%q:{"username":%q,"password":%q}}}`, key, user, password))
}

func pod(ns, name, node, image, more string) string {
	return fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: %s, name: %s}, spec: {nodeName: %s, containers: [{name: c, image: %q}], terminationGracePeriodSeconds: 0, %s}}",
		ns, name, node, image, more)
}

// The secrets of this node's pods and of their service accounts are in the file, from
// when a pod comes until it goes; changes of secrets follow.
func TestCluster(t *testing.T) {
	w := newWorld(t)
	a, b := w.Namespace(t), w.Namespace(t)
	w.run(t)
	w.apply(t, pullSecret(a, "s", "registry.test", "a", "secret-1"), pullSecret(b, "s", "https://registry.test/v2/", "b", "secret-2"),
		secret(b, "old", "kubernetes.io/dockercfg", ".dockercfg", `{"old.test":{"auth":"`+base64.StdEncoding.EncodeToString([]byte("c:secret-3"))+`"}}`),
		"{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: "+b+", name: builder}, imagePullSecrets: [{name: old}, {name: s}]}")
	w.apply(t, pod(a, "p", "n1", "registry.test/team/app:v1", "imagePullSecrets: [{name: s}]"), pod(b, "p", "n1", "registry.test/team/app:v2", "serviceAccountName: builder"),
		pod(b, "elsewhere", "n2", "none.test/x", "imagePullSecrets: [{name: none}]"))
	ofA := []string{"registry.test a:secret-1", "registry.test/team/app a:secret-1"}
	ofB := []string{"registry.test b:secret-2", "registry.test/team/app b:secret-2", "old.test c:secret-3"}
	w.expect(t, slices.Concat(ofA, ofB)...)

	// Another password, and another secret of the service account.
	w.apply(t, pullSecret(a, "s", "registry.test", "a", "secret-4"), "{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: "+b+", name: builder}, imagePullSecrets: [{name: old}]}")
	ofA = []string{"registry.test a:secret-4", "registry.test/team/app a:secret-4"}
	w.expect(t, append(slices.Clone(ofA), "old.test c:secret-3")...)
	w.kubectl(t, "-n", b, "delete", "serviceaccount", "builder")
	w.expect(t, ofA...)

	// A Keeper that ends leaves the file; the next one has what changed meanwhile.
	w.stop()
	w.kubectl(t, "-n", b, "delete", "pod", "p")
	w.expect(t, ofA...)
	w.apply(t, pod(b, "q", "n1", "x.test/y", "imagePullSecrets: [{name: old}]"))
	w.run(t)
	w.expect(t, append(slices.Clone(ofA), "old.test c:secret-3")...)

	// A pod that is over needs none, nor one that is gone; then there is no file.
	w.kubectl(t, "-n", b, "patch", "pod", "q", "--subresource=status", "--type=merge", "-p", `{"status":{"phase":"Succeeded"}}`)
	w.expect(t, ofA...)
	w.kubectl(t, "-n", a, "delete", "pod", "p")
	w.expect(t)
	if left, err := os.ReadDir(w.dir); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
	if log := w.log.String(); strings.Contains(log, "secret-") || strings.Contains(log, "WARN secret") || w.told.last() != "" {
		t.Errorf("told %q, log %s", w.told.list, log)
	}
}

// A secret that is not there, is none, or may not be read keeps no other from being
// used, is named once, and is used as soon as it can be.
func TestUnusable(t *testing.T) {
	w := newWorld(t)
	ns := w.Namespace(t)
	w.run(t)
	w.apply(t, pullSecret(ns, "good", "registry.test", "good", "secret-1"), secret(ns, "opaque", "Opaque", ".dockerconfigjson", `{"auths":{"x.test":{"username":"u","password":"secret-2"}}}`),
		secret(ns, "odd", "kubernetes.io/dockerconfigjson", ".dockerconfigjson", `{"auths":{"x.test":"secret-3"}}`),
		secret(ns, "half", "kubernetes.io/dockerconfigjson", ".dockerconfigjson", `{"auths":{"a b":{"password":"secret-4"},"half.test":{"username":"half","password":"secret-5"}}}`))
	w.apply(t, pod(ns, "p", "n1", "other.test/x", "serviceAccountName: missing, imagePullSecrets: [{name: opaque}, {name: odd}, {name: half}, {name: late}, {name: good}]"))
	w.expect(t, "registry.test good:secret-1", "half.test half:secret-5")
	once := map[string][]string{
		"late": {"name=late", "not found"}, "opaque": {"name=opaque", `\"Opaque\", not kubernetes.io/dockerconfigjson`}, "odd": {"name=odd", ".dockerconfigjson: not of the form"},
		"half": {"name=half", "in part", `a b`}, "account": {"serviceaccount is not used", "name=missing", "not found"},
	}
	for _, words := range once {
		w.says(t, words...)
	}
	w.apply(t, pullSecret(ns, "late", "late.test", "late", "secret-6"))
	w.expect(t, "registry.test good:secret-1", "half.test half:secret-5", "late.test late:secret-6")

	// The right to read secrets is taken away, and given back.
	w.kubectl(t, "patch", "clusterrole", "pod-credentials", "--type=json", "-p", `[{"op":"replace","path":"/rules/1/resources","value":["serviceaccounts"]}]`)
	w.expect(t)
	w.says(t, "name=good", "forbidden")
	w.apply(t, leastPrivilege)
	w.expect(t, "registry.test good:secret-1", "half.test half:secret-5", "late.test late:secret-6")
	for what, words := range once {
		// Once more after it could not be read for another reason.
		if n := w.says(t, words...); n != 1 && (n != 2 || what == "late" || what == "account") {
			t.Errorf("%s is told %d times:\n%s", what, n, &w.log)
		}
	}

	// The right to see pods: what is known stays.
	w.kubectl(t, "patch", "clusterrole", "pod-credentials", "--type=json", "-p", `[{"op":"remove","path":"/rules/0"}]`)
	w.stop()
	w.run(t)
	w.says(t, "the pods of node n1 cannot be followed: ", "forbidden")
	if last := w.told.last(); !strings.Contains(last, "the pods of node n1 cannot be followed: ") {
		t.Errorf("told %q", last)
	}
	w.expect(t, "registry.test good:secret-1", "half.test half:secret-5", "late.test late:secret-6")
	w.apply(t, leastPrivilege)
	for limit := time.Now().Add(30 * time.Second); w.told.last() != "<nil>" && time.Now().Before(limit); {
		time.Sleep(50 * time.Millisecond)
	}
	if last := w.told.last(); last != "<nil>" {
		t.Errorf("told %q", last)
	}
	if strings.Contains(w.log.String()+strings.Join(w.told.list, ""), "secret-") {
		t.Errorf("told %q, log:\n%s", w.told.list, &w.log)
	}
	w.stop()
	if err := errors.Join(podsecrets.Remove(w.dir), podsecrets.Remove(w.dir)); err != nil || w.file(t) != nil {
		t.Errorf("not removed: %v", err)
	}
}

// Lazy reads use the credentials: pods of three namespaces have different ones for one
// registry, which takes the last.
func TestReads(t *testing.T) {
	w := newWorld(t)
	reg := registry.New(t, registry.WithToken("right", "secret-right", 0))
	w.run(t)
	want := map[string]bool{}
	for i, user := range []string{"wrong", "other", "right"} {
		ns := w.Namespace(t)
		w.apply(t, pullSecret(ns, "s", reg.Host(), user, "secret-"+user), pod(ns, "p", "n1", fmt.Sprintf("%s/team/app:v%d", reg.Host(), i), "imagePullSecrets: [{name: s}]"))
		want[fmt.Sprintf("%s %s:secret-%s", reg.Host(), user, user)], want[fmt.Sprintf("%s/team/app %s:secret-%s", reg.Host(), user, user)] = true, true
	}
	w.expect(t, slices.Collect(maps.Keys(want))...)
	data := fetchtest.Random(1000)
	errs := source.NewLastErrors(5)
	r := source.New(source.Options{CredentialsDir: w.dir, DockerConfig: t.TempDir(), HostsDirs: []string{t.TempDir()}, Report: errs.Report})
	t.Cleanup(r.Close)
	b, err := r.Open(t.Context(), reg.Host()+"/team/app:v1", reg.AddBlob(t, data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 100)
	if err := fetch.ReadAt(t.Context(), b, p, 10); err != nil || !bytes.Equal(p, data[10:110]) || len(errs.List()) > 0 {
		t.Errorf("reading: %v, reported %v", err, errs.List())
	}
}
