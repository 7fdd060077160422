package pullsecret_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

// TestEditors has others change the references of a service account all the
// while, as Helm and users do: nobody's is lost.
func TestEditors(t *testing.T) {
	w := newWorld(t)
	w.namespace("busy")
	w.account("busy", "app")
	w.write(entry("a", "busy", "app", "password-0"))
	w.start()
	w.refs("busy", "app", "a")
	const editors, each = 3, 15
	var group sync.WaitGroup
	for n := range editors {
		group.Go(func() {
			for i := range each {
				if err := w.add("busy", "app", fmt.Sprintf("theirs-%d-%d", n, i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 8 { // meanwhile the list says now this and now that
		w.write(entry("a", "busy", "app", fmt.Sprintf("password-%d", i)), entry("b", "busy", "app", "password"))
		w.has("busy", "b", "password")
		w.write(entry("a", "busy", "app", fmt.Sprintf("password-%d", i)))
		w.has("busy", "b", "")
	}
	group.Wait()
	w.eventually("all references are there", func() error {
		sa, err := w.CoreV1().ServiceAccounts("busy").Get(t.Context(), "app", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if n := len(sa.ImagePullSecrets); n != editors*each+1 || !slices.Contains(sa.ImagePullSecrets, corev1.LocalObjectReference{Name: "a"}) {
			return fmt.Errorf("%d references", n)
		}
		return nil
	})
}

// add adds a reference over the version that was read.
func (w *world) add(ns, account, name string) error {
	for {
		sa, err := w.CoreV1().ServiceAccounts(ns).Get(w.Context(), account, metav1.GetOptions{})
		if err != nil {
			return err
		}
		sa.ImagePullSecrets = append(sa.ImagePullSecrets, corev1.LocalObjectReference{Name: name})
		if _, err = w.CoreV1().ServiceAccounts(ns).Update(w.Context(), sa, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			return err
		}
	}
}

// BenchmarkNamespaces is a list for a thousand namespaces: until all have it, until
// a new password is everywhere, and until a restarted keeper has looked at all.
func BenchmarkNamespaces(b *testing.B) {
	const many = 1000
	ctrllog.SetLogger(logr.Discard())
	for b.Loop() {
		w := newWorld(b)
		for i := range many {
			w.namespace(fmt.Sprintf("team-%04d", i))
		}
		reach := func(what string, done func() bool) float64 {
			start := time.Now()
			w.eventually(what, func() error {
				if !done() {
					return errors.New("not yet")
				}
				return nil
			})
			return time.Since(start).Seconds()
		}
		all := func() bool {
			return w.metric("apparate_pull_secrets") >= many && w.metric("apparate_pull_secret_attachments") >= many
		}
		w.write(entry("a", "*", "*", "password-1"))
		w.start()
		b.ReportMetric(reach("all have it", all), "s-to-all")
		before := w.metric("apparate_pull_secret_writes_total")
		w.write(entry("a", "*", "*", "password-2"))
		b.ReportMetric(reach("the new password", func() bool { return w.metric("apparate_pull_secret_writes_total") >= before+many }), "s-password")
		w.stop()
		w.start()
		b.ReportMetric(reach("a restart", all), "s-restart")
	}
}
