//! `topic-bridge schema`: prints the contracts that this program keeps.

use std::process::ExitCode;

use clap::ValueEnum;

use crate::schema;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to print.
    #[arg(value_enum, default_value_t = Name::Event)]
    name: Name,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Name {
    /// The JSON Schema of the whole CloudEvent.
    Event,
    /// The JSON Schema of its data, which `dataschema` names.
    Data,
    /// The AsyncAPI document: where events are, and what the messages look like. It refers to event and data as
    /// files in schema/.
    Asyncapi,
    /// The JSON Schema of the configuration, for editors.
    Config,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let document = match args.name {
        Name::Event => schema::EVENT,
        Name::Data => schema::DATA,
        Name::Asyncapi => schema::ASYNCAPI,
        Name::Config => schema::CONFIG,
    };
    super::print(document.text)?;
    Ok(ExitCode::SUCCESS)
}
