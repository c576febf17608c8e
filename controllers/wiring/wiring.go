// Package wiring checks, when the operator starts, that a part was given all that it
// works with. Without it, a field that cmd/manager forgets is a panic at the first use,
// perhaps hours later.
package wiring

import (
	"fmt"
	"reflect"
	"strings"
)

// Check returns an error that names the part and the fields of the struct that are not
// set. A field with the tag `wiring:"optional"` may be left out.
func Check(part string, dependencies any) error {
	value := reflect.ValueOf(dependencies)
	var missing []string
	for i := range value.NumField() {
		field := value.Type().Field(i)
		if field.Tag.Get("wiring") != "optional" && value.Field(i).IsZero() {
			missing = append(missing, field.Name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("making the %s: %s missing", part, strings.Join(missing, ", "))
	}
	return nil
}
