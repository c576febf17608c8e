// Package sysctl raises kernel limits that a node with hundreds of pods needs, and
// remembers the machine's own values, including those that the kubelet changes, so
// that they can be put back.
package sysctl

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// minima are kernel limits that are raised where they are lower. Each container takes some
// inotify instances, and the default of 128 is used up by some dozen pods.
var minima = map[string]int{
	"fs/inotify/max_user_instances": 8192,
	"fs/inotify/max_user_watches":   524288,
}

// kubelets are the settings that the kubelet changes when it starts.
var kubelets = []string{
	"vm/overcommit_memory",
	"vm/panic_on_oom",
	"kernel/panic",
	"kernel/panic_on_oops",
	"kernel/keys/root_maxkeys",
	"kernel/keys/root_maxbytes",
}

func path(name string) string { return filepath.Join("/proc/sys", name) }

// Raise remembers the machine's values in the file record, unless it is there
// already, and raises the limits.
func Raise(record string) error {
	if _, err := os.Stat(record); errors.Is(err, fs.ErrNotExist) {
		if err := remember(record); err != nil {
			return err
		}
	}
	for name, minimum := range minima {
		value, err := read(name)
		if err != nil {
			continue
		}
		if current, err := strconv.Atoi(value); err == nil && current < minimum {
			if err := os.WriteFile(path(name), []byte(strconv.Itoa(minimum)), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

func remember(record string) error {
	values := map[string]string{}
	names := slices.Clone(kubelets)
	for name := range minima {
		names = append(names, name)
	}
	for _, name := range names {
		// A kernel or container without the setting has nothing to put back.
		if value, err := read(name); err == nil {
			values[name] = value
		}
	}
	data, err := json.MarshalIndent(values, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(record, append(data, '\n'), 0o644)
}

// Restore puts back what Raise remembered and removes the record.
func Restore(record string) error {
	data, err := os.ReadFile(record)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var values map[string]string
	if err := json.Unmarshal(data, &values); err != nil {
		return err
	}
	var errs []error
	for name, value := range values {
		if current, err := read(name); err == nil && current != value {
			errs = append(errs, os.WriteFile(path(name), []byte(value), 0o644))
		}
	}
	return errors.Join(append(errs, os.Remove(record))...)
}

func read(name string) (string, error) {
	data, err := os.ReadFile(path(name))
	return strings.TrimSpace(string(data)), err
}
