package pullsecret_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"github.com/apparate/apparate/controllers/pullsecret"
	"github.com/apparate/apparate/test/kube"
	"github.com/apparate/apparate/test/tools"
)

const binding = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: apparate-pull-secrets}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: apparate-pull-secrets}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: keeper}]
`

// world is a Kubernetes with its controllers, and a keeper that has the rights of
// config/rbac and no others.
type world struct {
	testing.TB
	kubernetes.Interface
	cluster *kube.Cluster
	user    *rest.Config
	dir     string // of the file, which is replaced as kubelet does
	turn    int
	stop    func()
	metrics *prometheus.Registry
	events  *record.FakeRecorder
	mu      sync.Mutex
	log     bytes.Buffer
}

func newWorld(t testing.TB) *world {
	t.Helper()
	c := kube.Start(t, kube.Options{Controllers: true})
	w := &world{TB: t, cluster: c, dir: t.TempDir(), events: record.NewFakeRecorder(1000), stop: func() {}}
	var err error
	if w.Interface, err = kubernetes.NewForConfig(c.Config); err != nil {
		t.Fatal(err)
	}
	if w.user, _, err = c.User("keeper"); err != nil {
		t.Fatal(err)
	}
	root, err := tools.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"create", "namespace", "apparate-system"}, {"apply", "-f", filepath.Join(root, "config", "rbac", "role.yaml")}, {"apply", "-f", "-"}} {
		if out, bad, err := c.Kubectl(t.Context(), binding, args...); err != nil {
			t.Fatal(err, out, bad)
		}
	}
	t.Cleanup(func() {
		w.stop()
		if t.Failed() {
			t.Log(w.logged())
		}
		if strings.Contains(w.logged(), "password") || strings.Contains(w.logged(), "DATA RACE") {
			t.Errorf("the log: %s", w.logged())
		}
	})
	return w
}

func (w *world) logged() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.String()
}

// write replaces the file as kubelet replaces that of a Secret.
func (w *world) write(entries ...string) {
	w.Helper()
	w.turn++
	data := fmt.Sprintf("..%d", w.turn)
	err := errors.Join(
		os.Mkdir(filepath.Join(w.dir, data), 0o700),
		os.WriteFile(filepath.Join(w.dir, data, "list.json"), []byte("["+strings.Join(entries, ",")+"]"), 0o600),
		os.Symlink(data, filepath.Join(w.dir, "..new")),
		os.Rename(filepath.Join(w.dir, "..new"), filepath.Join(w.dir, "..data")),
	)
	if w.turn == 1 {
		err = errors.Join(err, os.Symlink("..data/list.json", filepath.Join(w.dir, "list.json")))
	}
	if err != nil {
		w.Fatal(err)
	}
}

// start starts a keeper; stop ends it.
func (w *world) start() {
	w.metrics = prometheus.NewRegistry()
	log := funcr.New(func(prefix, args string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		fmt.Fprintln(&w.log, prefix, args)
	}, funcr.Options{})
	k := pullsecret.New(w.user, filepath.Join(w.dir, "list.json"), w.events, w.metrics, log)
	k.Interval = 100 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- k.Start(ctx) }()
	w.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			w.Error(err)
		}
		w.stop = func() {}
	}
}

// metric sums a metric.
func (w *world) metric(name string) (sum float64) {
	w.Helper()
	families, err := w.metrics.Gather()
	if err != nil {
		w.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return sum
}

func (w *world) eventually(what string, check func() error) {
	w.Helper()
	var err error
	for limit := time.Now().Add(2 * time.Minute); time.Now().Before(limit); time.Sleep(20 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	w.Fatalf("not so: %s: %v", what, err)
}

func (w *world) namespace(name string) {
	w.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := w.CoreV1().Namespaces().Create(w.Context(), ns, metav1.CreateOptions{}); err != nil {
		w.Fatal(err)
	}
}

func (w *world) account(ns, name string, refs ...string) {
	w.Helper()
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, r := range refs {
		sa.ImagePullSecrets = append(sa.ImagePullSecrets, corev1.LocalObjectReference{Name: r})
	}
	if _, err := w.CoreV1().ServiceAccounts(ns).Create(w.Context(), sa, metav1.CreateOptions{}); err != nil {
		w.Fatal(err)
	}
}

// has waits until a Secret has text in it; "" until there is none.
func (w *world) has(ns, name, text string) {
	w.Helper()
	w.eventually(ns+"/"+name+" has "+text, func() error {
		s, err := w.CoreV1().Secrets(ns).Get(w.Context(), name, metav1.GetOptions{})
		if text == "" && apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if text == "" || s.Type != corev1.SecretTypeDockerConfigJson || !strings.Contains(string(s.Data[corev1.DockerConfigJsonKey]), text) {
			return fmt.Errorf("it is another: %s", s.Type)
		}
		return nil
	})
}

// refs waits until a service account has these references, and no others.
func (w *world) refs(ns, account string, want ...string) {
	w.Helper()
	w.eventually(fmt.Sprintf("%s/%s refers to %v", ns, account, want), func() error {
		sa, err := w.CoreV1().ServiceAccounts(ns).Get(w.Context(), account, metav1.GetOptions{})
		if err != nil {
			return err
		}
		var have []string
		for _, r := range sa.ImagePullSecrets {
			have = append(have, r.Name)
		}
		if !slices.Equal(have, want) {
			return fmt.Errorf("it refers to %v", have)
		}
		if len(want) == 0 && sa.Annotations[pullsecret.Attached] != "" {
			return fmt.Errorf("its annotations are %v", sa.Annotations)
		}
		return nil
	})
}

func entry(name, namespaces, accounts, password string) string {
	return fmt.Sprintf(`{"name":%q,"namespaces":%q,"serviceAccounts":%q,"type":"docker","dockerUsername":"u","dockerPassword":%q,"dockerServer":"r.example.com"}`,
		name, namespaces, accounts, password)
}

// TestCluster is the whole life of a list, against a real API server and the
// controller that makes service accounts.
func TestCluster(t *testing.T) {
	w := newWorld(t)
	w.namespace("old")
	w.namespace("other")
	w.account("old", "builder", "mine")
	w.account("old", "ready", "all") // refers to the Secret before there is one
	foreign := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "all", Namespace: "other", Labels: map[string]string{pullsecret.Label: "true"},
		Annotations: map[string]string{pullsecret.Origin: "old/all"}}, StringData: map[string]string{"k": "v"}}
	foreign, err := w.CoreV1().Secrets("other").Create(t.Context(), foreign, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.write(entry("all", "*", "*", "password-1"), entry("few", "old,late", "builder", "password-2"))
	w.start()

	// What is there, and what comes.
	w.has("old", "all", "password-1")
	w.has("old", "few", "password-2")
	w.refs("old", "default", "all")
	w.refs("old", "builder", "mine", "all", "few")
	w.refs("old", "ready", "all")
	w.namespace("late")
	w.has("late", "few", "password-2")
	w.refs("late", "default", "all")
	w.account("late", "builder")
	w.refs("late", "builder", "all", "few")
	w.has("other", "few", "")

	// A Secret of the name that is not ours (a copy, as some tools make them).
	w.eventually("the copy is told of", func() error {
		if w.metric("apparate_pull_secrets_foreign") != 1 || !strings.Contains(w.logged(), "other/all") {
			return errors.New("not in metrics or log")
		}
		return nil
	})
	w.refs("other", "default")
	if now, err := w.CoreV1().Secrets("other").Get(t.Context(), "all", metav1.GetOptions{}); err != nil || now.ResourceVersion != foreign.ResourceVersion {
		t.Error("the foreign Secret was changed", err)
	}
	select {
	case e := <-w.events.Events:
		if !strings.Contains(e, pullsecret.ReasonForeign) {
			t.Error(e)
		}
	default:
		t.Error("no event of the foreign Secret")
	}

	// Others change what is ours.
	patch := func(account, text string) {
		t.Helper()
		if _, err := w.CoreV1().ServiceAccounts("old").Patch(t.Context(), account, types.MergePatchType, []byte(text), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	patch("builder", `{"imagePullSecrets":[{"name":"few"},{"name":"mine"}]}`)
	w.refs("old", "builder", "few", "mine", "all")
	if err := w.CoreV1().Secrets("old").Delete(t.Context(), "few", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.has("old", "few", "password-2")
	if _, err := w.CoreV1().Secrets("old").Patch(t.Context(), "all", types.MergePatchType, []byte(`{"data":{".dockerconfigjson":"e30="}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	w.has("old", "all", "password-1")

	restartWritesNothing(w)

	// A new password, a bad entry beside it: what is there under its name stays.
	w.write(entry("all", "*", "*", "password-3"), strings.Replace(entry("few", "old", "builder", "password-2"), "docker\"", "helm\"", 1))
	w.has("old", "all", "password-3")
	w.has("late", "all", "password-3")
	w.has("late", "few", "password-2")
	if !strings.Contains(w.logged(), "pull secret 2 (few): type is not docker") || w.metric("apparate_pull_secret_bad_entries") != 1 {
		t.Error("the mistake is not told of")
	}
	// Renamed, and a namespace less.
	w.write(entry("new", "*", "default", "password-4"), entry("few", "late", "builder", "password-2"))
	w.has("old", "new", "password-4")
	w.has("old", "all", "")
	w.has("old", "few", "")
	w.refs("old", "builder", "mine")
	w.refs("old", "default", "new")
	w.refs("old", "ready", "all") // it was theirs
	w.refs("late", "builder", "few")

	namespaceEnds(w)

	w.write()
	w.has("late", "few", "")
	w.refs("late", "builder")
	w.refs("old", "default")
	w.eventually("nothing is counted", func() error {
		if n := w.metric("apparate_pull_secrets") + w.metric("apparate_pull_secret_attachments"); n != 0 {
			return fmt.Errorf("%v", n)
		}
		return nil
	})
	if now, err := w.CoreV1().Secrets("other").Get(t.Context(), "all", metav1.GetOptions{}); err != nil || now.ResourceVersion != foreign.ResourceVersion {
		t.Error("the foreign Secret was changed", err)
	}
}

// restartWritesNothing starts another keeper where nothing has changed.
func restartWritesNothing(w *world) {
	w.Helper()
	secrets, accounts := w.metric("apparate_pull_secrets"), w.metric("apparate_pull_secret_attachments")
	w.stop()
	w.start()
	w.eventually("it has looked at all", func() error {
		if s, a := w.metric("apparate_pull_secrets"), w.metric("apparate_pull_secret_attachments"); s != secrets || a != accounts {
			return fmt.Errorf("%v of %v Secrets, %v of %v references", s, secrets, a, accounts)
		}
		return nil
	})
	if n := w.metric("apparate_pull_secret_writes_total"); n != 0 {
		w.Errorf("%v writes after a restart", n)
	}
}

// namespaceEnds deletes one, in which the keeper has things.
func namespaceEnds(w *world) {
	w.Helper()
	w.namespace("gone")
	w.has("gone", "new", "password-4")
	if _, bad, err := w.cluster.Kubectl(w.Context(), "", "delete", "namespace", "gone", "--timeout=50s"); err != nil {
		w.Fatal(err, bad)
	}
	if n := w.metric("apparate_pull_secret_failures_total"); n != 0 {
		w.Errorf("%v failures", n)
	}
}
