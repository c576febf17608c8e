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
