package state

// SettingOrigin says who gave a setting its value. What is named later goes before what is named earlier.
type SettingOrigin string

// The origins of settings.
const (
	SettingDefault SettingOrigin = "default" // nobody
	SettingFile    SettingOrigin = "file"    // the configuration file
	SettingFlag    SettingOrigin = "flag"    // a flag of the daemon, or its environment
	SettingState   SettingOrigin = "state"   // somebody at run time
)

// Setting is a setting with its effective value, and where that comes from.
type Setting struct {
	Path   string        `json:"path" doc:"As the reference has it" example:"limits.web.packets"`
	Value  string        `json:"value"`
	Origin SettingOrigin `json:"origin" enum:"default,file,flag,state" doc:"state: it was set at run time"`
	From   string        `json:"from" doc:"The origin more exactly: the file's line, the flag, who set it" example:"/etc/levee/levee.yaml:12"`
}

// Effective is every setting, as it is in force.
type Effective struct {
	Settings []Setting `json:"settings"`
	Notice   string    `json:"notice,omitempty" doc:"That another configuration than the file's is in force"`
}
