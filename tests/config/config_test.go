// Package config tests the manifests of config/ as kustomize renders them.
package config

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/resmap"
	"sigs.k8s.io/kustomize/api/resource"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const root = "../.."

// render returns what users of a folder of config/ apply.
func render(t *testing.T, folder string) resmap.ResMap {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(root, "config", folder))
	require.NoError(t, err)
	return resources
}

// object returns the one object of a kind and name.
func object(t *testing.T, resources resmap.ResMap, kind, name string) map[string]any {
	t.Helper()
	for _, r := range resources.Resources() {
		if r.GetKind() == kind && r.GetName() == name {
			fields, err := r.Map()
			require.NoError(t, err)
			return fields
		}
	}
	require.Failf(t, "missing", "%s %s", kind, name)
	return nil
}

func text(t *testing.T, r *resource.Resource) string {
	t.Helper()
	out, err := r.AsYAML()
	require.NoError(t, err)
	return string(out)
}

// What is applied again must not overwrite what the operator keeps.
func TestNoSecretIsShipped(t *testing.T) {
	for _, r := range render(t, "default").Resources() {
		assert.NotEqual(t, "Secret", r.GetKind(), r.GetName())
	}
}

func TestRolesHaveNoWildcards(t *testing.T) {
	for _, r := range render(t, "default").Resources() {
		if strings.HasSuffix(r.GetKind(), "Role") {
			assert.NotContains(t, text(t, r), "'*'", r.GetName())
		}
	}
}

// The ClusterRole for what concerns workloads can be bound in single namespaces only
// if it names nothing else.
func TestTheManagerRoleNamesOnlyResourcesOfNamespaces(t *testing.T) {
	role := object(t, render(t, "default"), "ClusterRole", "opensandbox-manager-role")
	groups := map[string]bool{}
	for _, rule := range role["rules"].([]any) {
		for _, group := range rule.(map[string]any)["apiGroups"].([]any) {
			groups[group.(string)] = true
		}
	}
	assert.Equal(t, map[string]bool{"": true, "events.k8s.io": true, "sandbox.opensandbox.io": true}, groups)
}

// Our own pods meet the restricted Pod Security Standard, which the namespace enforces.
func TestTheNamespaceIsRestricted(t *testing.T) {
	namespace := object(t, render(t, "default"), "Namespace", "opensandbox-system")
	labels := namespace["metadata"].(map[string]any)["labels"].(map[string]any)
	assert.Equal(t, "restricted", labels["pod-security.kubernetes.io/enforce"])
}

// On OpenShift, restricted-v2 gives the operator a user of the namespace's own range, and
// takes no pod that asks for another.
func TestTheOperatorAsksForNoUser(t *testing.T) {
	for _, r := range render(t, "default").Resources() {
		for _, field := range []string{"runAsUser", "runAsGroup", "fsGroup"} {
			assert.NotContains(t, text(t, r), field, r.GetName())
		}
	}
}

// Go knows nothing of the container's limit and would let garbage grow past it. The kubelet
// gives the limit in mebibytes, rounded up, and a megabyte for each of these is 95 % of it;
// the order matters, since a variable sees only those before it.
func TestTheOperatorKnowsItsMemoryLimit(t *testing.T) {
	for _, folder := range []string{"default", "manifests/operator"} {
		deployment := object(t, render(t, folder), "Deployment", "opensandbox-controller-manager")
		var pod struct {
			Spec struct {
				Template struct {
					Spec struct {
						Containers []struct {
							Env []struct {
								Name, Value string
								ValueFrom   struct {
									ResourceFieldRef struct{ Resource, Divisor string } `json:"resourceFieldRef"`
								} `json:"valueFrom"`
							} `json:"env"`
							Resources struct{ Limits map[string]string } `json:"resources"`
						} `json:"containers"`
					} `json:"spec"`
				} `json:"template"`
			} `json:"spec"`
		}
		raw, err := yaml.Marshal(deployment)
		require.NoError(t, err)
		require.NoError(t, yaml.Unmarshal(raw, &pod))
		manager := pod.Spec.Template.Spec.Containers[0]
		require.NotEmpty(t, manager.Resources.Limits["memory"], folder)
		limit, known := "", false
		for _, variable := range manager.Env {
			field := variable.ValueFrom.ResourceFieldRef
			known = known || variable.Name == "MEMORY_LIMIT_MIB" && field.Resource == "limits.memory" && field.Divisor == "1Mi"
			if variable.Name == "GOMEMLIMIT" && known {
				limit = variable.Value
			}
		}
		assert.Equal(t, "$(MEMORY_LIMIT_MIB)000000", limit, folder)
	}
}
