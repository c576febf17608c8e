// Package evidence keeps what one needs to find out why a test failed. The tests that
// run against an API server call it; where there are nodes, it keeps the logs of pods too.
package evidence

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

const (
	// patience bounds the time that gathering takes: the cluster may be what failed.
	patience = time.Minute
	// logBytes of a container are kept, counted from its start.
	logBytes = 4 << 20
)

// kinds of which all objects of a namespace are kept.
var kinds = []schema.GroupVersionKind{
	{Group: "sandbox.opensandbox.io", Version: "v1alpha1", Kind: "Pool"},
	{Group: "sandbox.opensandbox.io", Version: "v1alpha1", Kind: "BatchSandbox"},
	{Version: "v1", Kind: "Pod"},
	{Group: "events.k8s.io", Version: "v1", Kind: "Event"},
	{Group: "apps", Version: "v1", Kind: "Deployment"},
	{Group: "apps", Version: "v1", Kind: "ReplicaSet"},
	{Group: "coordination.k8s.io", Version: "v1", Kind: "Lease"},
	{Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSlice"},
	{Group: "networking.k8s.io", Version: "v1", Kind: "NetworkPolicy"},
	{Group: "operators.coreos.com", Version: "v1", Kind: "OperatorGroup"},
	{Group: "operators.coreos.com", Version: "v1alpha1", Kind: "Subscription"},
	{Group: "operators.coreos.com", Version: "v1alpha1", Kind: "InstallPlan"},
	{Group: "operators.coreos.com", Version: "v1alpha1", Kind: "ClusterServiceVersion"},
}

// T is what is needed of a *testing.T.
type T interface {
	Helper()
	Name() string
	Failed() bool
	Cleanup(func())
	ArtifactDir() string
	Logf(format string, args ...any)
}

// OnFailure has the objects and events of the namespaces, and the logs of their pods,
// written to the test's artifact folder when the test has failed. Call it after the
// cleanups that delete these objects are registered: cleanups run last to first.
// `go test -artifacts -outputdir FOLDER`, as the Makefile calls it, keeps the folder.
func OnFailure(t T, config *rest.Config, namespaces ...string) {
	t.Helper()
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		for _, namespace := range namespaces {
			if err := keep(ctx, config, filepath.Join(folder(t), namespace), namespace); err != nil {
				t.Logf("not all of namespace %s could be kept: %s", namespace, err)
			}
		}
	})
}

// File has a file, such as the log of a process that the test has started, copied to
// the test's artifact folder when the test has failed.
func File(t T, path string) {
	t.Helper()
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		text, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(filepath.Join(folder(t), filepath.Base(path)), text, 0o600)
		}
		if err != nil {
			t.Logf("%s could not be kept: %s", path, err)
		}
	})
}

// folder returns the test's artifact folder, made in it under the name of the test: Go
// 1.26 numbers the artifact folders only.
func folder(t T) string {
	path := filepath.Join(t.ArtifactDir(), filepath.FromSlash(t.Name()))
	if err := os.MkdirAll(path, 0o750); err != nil {
		t.Logf("no folder for what the test leaves: %s", err)
	}
	return path
}

func keep(ctx context.Context, config *rest.Config, folder, namespace string) error {
	if err := os.MkdirAll(folder, 0o750); err != nil {
		return err
	}
	api, err := client.New(config, client.Options{})
	if err != nil {
		return err
	}
	var errs []error
	for _, kind := range kinds {
		errs = append(errs, keepObjects(ctx, api, folder, namespace, kind))
	}
	return errors.Join(append(errs, keepLogs(ctx, config, folder, namespace))...)
}

func keepObjects(ctx context.Context, api client.Client, folder, namespace string, kind schema.GroupVersionKind) error {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(kind)
	err := api.List(ctx, list, client.InNamespace(namespace))
	if meta.IsNoMatchError(err) || err == nil && len(list.Items) == 0 {
		return nil // OLM's kinds are not everywhere
	}
	if err != nil {
		return fmt.Errorf("listing %s: %w", kind.Kind, err)
	}
	var text bytes.Buffer
	for i := range list.Items {
		list.Items[i].SetManagedFields(nil)
		object, err := yaml.Marshal(list.Items[i].Object)
		if err != nil {
			return fmt.Errorf("writing %s %s: %w", kind.Kind, list.Items[i].GetName(), err)
		}
		_, _ = fmt.Fprintf(&text, "---\n%s", object)
	}
	return os.WriteFile(filepath.Join(folder, kind.Kind+".yaml"), text.Bytes(), 0o600)
}

// keepLogs keeps what each container says, and what it said before its last restart.
func keepLogs(ctx context.Context, config *rest.Config, folder, namespace string) error {
	api, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	pods, err := api.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("listing pods: %w", err)
	}
	var errs []error
	for i := range pods.Items {
		pod := &pods.Items[i]
		for _, status := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
			if status.ContainerID == "" {
				continue // it has not started, or there is no node
			}
			errs = append(errs, keepLog(ctx, api, folder, pod, status.Name, false))
			if status.RestartCount > 0 {
				errs = append(errs, keepLog(ctx, api, folder, pod, status.Name, true))
			}
		}
	}
	return errors.Join(errs...)
}

func keepLog(ctx context.Context, api kubernetes.Interface, folder string, pod *corev1.Pod, container string, previous bool) (err error) {
	options := &corev1.PodLogOptions{Container: container, Previous: previous, LimitBytes: ptr.To(int64(logBytes))}
	log, err := api.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, options).Stream(ctx)
	if err != nil {
		return fmt.Errorf("reading the log of pod %s, container %s: %w", pod.Name, container, err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	name := pod.Name + "." + container
	if previous {
		name += ".previous"
	}
	file, err := os.Create(filepath.Join(folder, name+".log"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	_, err = io.Copy(file, log)
	return err
}
